# samforge serve on processors. Build it from the root of the repository:
#   docker build -f containers/cpu.Dockerfile -t samforge:cpu .
# Pin the base by its digest where builds have to repeat: --build-arg BASE=python:…@sha256:…
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# Runtimes that bundles need beside ONNX Runtime, and what the server reads.
ARG EXTRAS=serve,video,openvino
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
RUN python -m venv /opt/samforge \
 && /opt/samforge/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]" \
 # The tiny model is for builds and tests: an image holds no weights.
 && find /opt/samforge -name '*.safetensors' -delete

FROM ${BASE}
COPY --from=build /opt/samforge /opt/samforge
RUN groupadd --gid 10001 samforge \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
    --shell /usr/sbin/nologin samforge
ENV PATH=/opt/samforge/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Ready is more than alive: the bundle has held its proof on this machine.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["samforge", "serve"]
# The bundle is mounted read-only. Others than this container can ask, so each needs a token.
CMD ["/bundle", "--host", "0.0.0.0", "--tokens", "/run/secrets/samforge-tokens"]
