# The program for NVIDIA GPUs, with its CUDA C++ and Triton kernels:
#   docker build -f docker/cuda.Dockerfile --build-arg ARCHITECTURES="8.9 9.0" -t resshift-fast:cuda .
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u):$(id -g)" resshift-fast:cuda restore photo.jpg -o restored.png
# Any image with Python 3.10 to 3.13, its headers and apt, such as a mirror's. It needs no CUDA.
ARG BASE=docker.io/library/python:3.12-slim

FROM $BASE AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# torch is in both stages: the kernels are compiled with its headers, and any later torch runs them.
RUN python -m venv /opt/resshift
ENV PATH=/opt/resshift/bin:$PATH
# A build of torch with CUDA.
ARG TORCH="torch>=2.10"
ARG TORCH_INDEX=https://pypi.org/simple
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$TORCH"
# A compiler of the same CUDA (13 or newer), in a folder of its own, which stays in this stage. All its parts are named, since
# it takes parts of any version: an assembler refuses what a newer compiler writes.
RUN CUDA="$(python -c 'import torch; print(torch.version.cuda)')" && \
    printf "nvidia-%s==$CUDA.*\n" cuda-nvcc cuda-crt nvvm cuda-runtime cuda-cccl >/opt/cuda.txt && \
    pip install --no-cache-dir --target /opt/cuda --requirement /opt/cuda.txt && \
    ln -s /opt/cuda/nvidia/cu* /opt/cuda/toolkit
ENV CUDA_HOME=/opt/cuda/toolkit LIBRARY_PATH=/opt/cuda/toolkit/lib
COPY . /source
WORKDIR /source
# Compute capabilities, as in TORCH_CUDA_ARCH_LIST.
ARG ARCHITECTURES="8.0 8.6 8.9 9.0 10.0 12.0+PTX"
# 0 leaves out the kernels for CPUs.
ARG RESSHIFT_FAST_CPU=1
# Extras of pyproject.toml, separated by commas.
ARG EXTRAS=serve
# Compilers at once: one a core unless it is set.
ARG MAX_JOBS
# hadolint ignore=DL3013
RUN RESSHIFT_FAST_CUDA=1 TORCH_CUDA_ARCH_LIST="$ARCHITECTURES" pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}"

FROM $BASE
# Triton compiles a small launcher for each GPU with a C compiler.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/resshift /opt/resshift
# Weights that are downloaded and kernels that are compiled are kept in a volume. A user without a home may write there.
ENV PATH=/opt/resshift/bin:$PATH HOME=/cache RESSHIFT_FAST_CACHE=/cache TRITON_CACHE_DIR=/cache/triton
RUN mkdir --mode=1777 /cache /work
VOLUME /cache
WORKDIR /work
USER 65534:65534
# The first process of a container ignores SIGTERM unless it says otherwise; Ctrl-C ends every command in good order.
STOPSIGNAL SIGINT
ENTRYPOINT ["resshift-fast"]
CMD ["--help"]
