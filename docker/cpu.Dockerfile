# The program for CPUs, with its C++ kernels:
#   docker build -f docker/cpu.Dockerfile -t resshift-fast:cpu .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" resshift-fast:cpu restore photo.jpg -o restored.png
FROM python:3.12-slim AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# torch is in both stages: the kernels are compiled with its headers, and any later torch runs them.
RUN python -m venv /opt/resshift
ENV PATH=/opt/resshift/bin:$PATH
RUN pip install --no-cache-dir 'torch>=2.10' --index-url https://download.pytorch.org/whl/cpu
COPY . /source
WORKDIR /source
RUN RESSHIFT_FAST_CPU=1 RESSHIFT_FAST_CUDA=0 pip install --no-cache-dir .

FROM python:3.12-slim
COPY --from=build /opt/resshift /opt/resshift
ENV PATH=/opt/resshift/bin:$PATH RESSHIFT_FAST_CACHE=/cache
# Weights that are downloaded are kept in a volume; a user without a home may write there.
RUN mkdir --mode=1777 /cache /work
VOLUME /cache
WORKDIR /work
USER 65534:65534
ENTRYPOINT ["resshift-fast"]
CMD ["--help"]
