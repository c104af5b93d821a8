# samforge serve on NVIDIA GPUs, with ONNX Runtime on CUDA. Build it from the root of the repository:
#   docker build -f containers/gpu.Dockerfile -t samforge:gpu .
# The host has NVIDIA's driver and container toolkit; CUDA's libraries and cuDNN come as packages.
# Pin the base by its digest where builds have to repeat: --build-arg BASE=python:…@sha256:…
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# For bundles of other targets: serve,video,tensorrt or serve,video,build (torch, for inductor).
ARG EXTRAS=serve,video,onnxruntime-cuda
ARG ONNXRUNTIME_GPU=1.31.1
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
# Both packages of ONNX Runtime share one module: docs/onnxruntime-cuda.md.
RUN python -m venv /opt/samforge \
 && /opt/samforge/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" \
 && /opt/samforge/bin/pip uninstall --yes onnxruntime \
 && /opt/samforge/bin/pip install --no-cache-dir --force-reinstall --no-deps \
    "onnxruntime-gpu==${ONNXRUNTIME_GPU}" \
 # The tiny model is for builds and tests: an image holds no weights.
 && find /opt/samforge -name '*.safetensors' -delete

FROM ${BASE}
COPY --from=build /opt/samforge /opt/samforge
RUN groupadd --gid 10001 samforge \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
    --shell /usr/sbin/nologin samforge
ENV PATH=/opt/samforge/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Ready is more than alive: the bundle has held its proof on this machine.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["samforge", "serve"]
# The bundle is mounted read-only. Others than this container can ask, so each needs a token.
CMD ["/bundle", "--host", "0.0.0.0", "--tokens", "/run/secrets/samforge-tokens"]
