# syntax=docker/dockerfile:1
# Four images from one file:
#   docker build --target serve -t cognate:serve .            the service on a CPU, no torch
#   docker build --target serve-gpu -t cognate:serve-gpu .    the service on CUDA, no torch
#   docker build --target train -t cognate:train .            trainer, exporter and indexer
#   docker build --target ray -t cognate:ray .                indexer on a Ray cluster (deploy/kubernetes/index-job.yaml)

FROM python:3.12-slim-bookworm AS cpu
RUN useradd --create-home --uid 10001 cognate
ENV PATH=/opt/cognate/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# CUDA and cuDNN come with onnxruntime-gpu's and faiss-gpu's packages, of the versions that each wants; the driver
# comes from the host, by the NVIDIA container toolkit.
FROM cpu AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Each build stage makes the virtual environment on the base that it will run on.
FROM cpu AS build-serve
# For the operators of cognate/operators.py, which are quicker where the processor has AVX-512 or AMX.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# serve,openvino for bf16 on processors that have it.
ARG EXTRAS=serve
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/cognate && pip install -c constraints.txt ".[${EXTRAS}]"

FROM gpu AS build-serve-gpu
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/cognate && pip install -c constraints.txt '.[serve-gpu]'

FROM cpu AS build-train
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/cognate && pip install -c constraints.txt '.[train]'

FROM cpu AS serve
COPY --from=build-serve /opt/cognate /opt/cognate
ENV COGNATE_HOST=0.0.0.0
USER 10001
WORKDIR /home/cognate
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["cognate", "health"]
ENTRYPOINT ["cognate"]
CMD ["serve", "--bundle", "/bundle", "--index", "/index"]

FROM gpu AS serve-gpu
COPY --from=build-serve-gpu /opt/cognate /opt/cognate
ENV COGNATE_HOST=0.0.0.0
USER 10001
WORKDIR /home/cognate
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["cognate", "health"]
ENTRYPOINT ["cognate"]
CMD ["serve", "--bundle", "/bundle", "--index", "/index", "--device", "cuda"]

# Not a server: there is no health to ask for.
FROM cpu AS train
COPY --from=build-train /opt/cognate /opt/cognate
USER 10001
WORKDIR /home/cognate
HEALTHCHECK NONE
ENTRYPOINT ["cognate"]
CMD ["--help"]

# Ray's own image, of which KubeRay makes heads and workers.
FROM rayproject/ray:2.60.0-py312-cpu AS ray
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[distributed]'
WORKDIR /home/ray
HEALTHCHECK NONE
