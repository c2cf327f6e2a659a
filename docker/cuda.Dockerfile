# The program for NVIDIA GPUs, with its CUDA C++ and Triton kernels:
#   docker build -f docker/cuda.Dockerfile --build-arg ARCHITECTURES="8.9 9.0" -t resshift-fast:cuda .
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u):$(id -g)" resshift-fast:cuda restore photo.jpg -o restored.png
FROM python:3.12-slim AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/build
ENV PATH=/opt/build/bin:$PATH
# The build of torch with CUDA, and a compiler of the same CUDA, which stays in this stage.
RUN pip install --no-cache-dir 'torch>=2.10' && \
    pip install --no-cache-dir "nvidia-cuda-nvcc==$(python -c 'import torch; print(torch.version.cuda)').*" \
    "nvidia-cuda-cccl==$(python -c 'import torch; print(torch.version.cuda)').*"
COPY . /source
WORKDIR /source
# Compute capabilities, as in TORCH_CUDA_ARCH_LIST.
ARG ARCHITECTURES="8.0 8.6 8.9 9.0 10.0 12.0+PTX"
RUN RESSHIFT_FAST_CPU=1 RESSHIFT_FAST_CUDA=1 TORCH_CUDA_ARCH_LIST="$ARCHITECTURES" \
    pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
# Triton compiles a small launcher for each GPU with a C compiler.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/resshift
ENV PATH=/opt/resshift/bin:$PATH RESSHIFT_FAST_CACHE=/cache TRITON_CACHE_DIR=/cache/triton
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels pip install --no-cache-dir /wheels/*.whl
RUN mkdir --mode=1777 /cache /work
VOLUME /cache
WORKDIR /work
USER 65534:65534
ENTRYPOINT ["resshift-fast"]
CMD ["--help"]
