# A yard on CPUs, with its gateway: docs/fleet.md, "Container and Kubernetes".
#   docker build -t batchyard .
#   docker run --read-only --tmpfs /run/batchyard --tmpfs /tmp -v "$PWD/models:/models:ro" \
#     -e BATCHYARD_GATEWAY_TOKEN -p 8000:8000 -p 8001:8001 batchyard
# Wheels only: no compiler in either stage. BASE is any image with Python 3.11 or later and its venv module.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/batchyard \
    && pins="constraints/python$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt" \
    && /opt/batchyard/bin/pip install --no-cache-dir --only-binary=:all: -c "$pins" setuptools \
    && /opt/batchyard/bin/pip install --no-cache-dir --only-binary=:all: --no-build-isolation -c "$pins" \
       ".[cpu,gateway,sidecar]" \
    && /opt/batchyard/bin/pip uninstall -y -q setuptools pip \
    && cd /opt/batchyard/lib/python3*/site-packages \
    && rm -r onnxruntime/transformers onnxruntime/tools onnxruntime/quantization onnxruntime/datasets \
    && find . -type d \( -name __pycache__ -o -name tests -o -name test \) -prune -exec rm -r {} + \
    && find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.[ch]' \) -delete

FROM ${BASE}
COPY --from=build /opt/batchyard /opt/batchyard
# The yard's sockets and files: a tmpfs, since nothing else of the root need be written.
RUN mkdir -p /run/batchyard /models && chown 10001:10001 /run/batchyard && chmod 0700 /run/batchyard
ENV PATH=/opt/batchyard/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BATCHYARD_URL=ipc:///run/batchyard/yard
USER 10001:10001
WORKDIR /models
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
ENTRYPOINT ["batchyard"]
CMD ["up", "--config", "/models/batchyard.toml", "--gateway", "8000", "--gateway-host", "0.0.0.0"]
