# The program for CPUs, with its C++ kernels:
#   docker build -f docker/cpu.Dockerfile -t resshift-fast:cpu .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" resshift-fast:cpu restore photo.jpg -o restored.png
# Any image with Python 3.10 to 3.13 and apt, such as a mirror's.
ARG BASE=docker.io/library/python:3.12-slim

FROM $BASE AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# torch is in both stages: the kernels are compiled with its headers, and any later torch runs them.
RUN python -m venv /opt/resshift
ENV PATH=/opt/resshift/bin:$PATH
ARG TORCH="torch>=2.10"
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$TORCH"
COPY . /source
WORKDIR /source
# Extras of pyproject.toml, separated by commas.
ARG EXTRAS=serve
# Compilers at once: one a core unless it is set.
ARG MAX_JOBS
# hadolint ignore=DL3013
RUN RESSHIFT_FAST_CPU=1 RESSHIFT_FAST_CUDA=0 pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}"

FROM $BASE
COPY --from=build /opt/resshift /opt/resshift
# Weights that are downloaded are kept in a volume. A user without a home may write there.
ENV PATH=/opt/resshift/bin:$PATH HOME=/cache RESSHIFT_FAST_CACHE=/cache
RUN mkdir --mode=1777 /cache /work
VOLUME /cache
WORKDIR /work
USER 65534:65534
# The first process of a container ignores SIGTERM unless it says otherwise; Ctrl-C ends every command in good order.
STOPSIGNAL SIGINT
ENTRYPOINT ["resshift-fast"]
CMD ["--help"]
