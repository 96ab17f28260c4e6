# syntax=docker/dockerfile:1
#
#   docker build --target gateway -t chorus .            without torch: gateways, and everything that is not an engine
#   docker build --target gateway --build-arg HOSTED=1 -t chorus .    the same with litellm, for `hosted` models
#   docker build --target engines -t chorus-engines .    the engine host on CPU, and fetching weights
#
# Everything that comes from PyPI is pinned by sha256 (locks/). The base image is pinned by tag: its digest changes with every
# security fix, so it is yours to choose: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:…
# Behind a mirror: --secret id=pip.conf,src=$HOME/.config/pip/pip.conf and --build-arg TORCH_INDEX=…; neither stays in the image.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --------------------------------------------------------------------------------------------------------------- common
FROM ${PYTHON_IMAGE} AS base
# HOME and caches under /tmp: with a read-only root that is the one place to write beside CHORUS_HOME.
ENV PATH=/opt/chorus/bin:$PATH \
    HOME=/tmp \
    CHORUS_HOME=/var/lib/chorus \
    HF_HUB_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# A number, so that Kubernetes' runAsNonRoot can tell; its folders exist, so that new volumes there belong to it.
RUN install -d -o 10001 -g 10001 /var/lib/chorus /var/lib/chorus-state

# ------------------------------------------------------------------------------------------------------------- building
FROM base AS build-gateway
WORKDIR /build
RUN python -m venv /opt/chorus
COPY locks/gateway.txt locks/hosted.txt locks/serve.txt locks/
# The build backend comes from the larger lock; Chorus itself in a layer of its own, for it changes more often.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    awk '/^[a-z]/ {on = /^setuptools==/} on' locks/serve.txt > build.txt \
    && pip install --no-cache-dir --no-deps --require-hashes -r locks/gateway.txt -r build.txt
ARG HOSTED=""
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    if [ -n "$HOSTED" ]; then pip install --no-cache-dir --no-deps --require-hashes -r locks/hosted.txt; fi
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# The router's embedder, 23 MB: small enough to be part of the image, so that a gateway downloads nothing when it starts.
FROM build-gateway AS build-embedder
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    chorus models pull all-minilm-l6-v2-int8 \
    && rm -r /var/lib/chorus/wheels

FROM build-gateway AS build-engines
ARG TORCH_VERSION=2.13.0+cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" "torch==$TORCH_VERSION" \
    && pip install --no-cache-dir --no-deps --require-hashes -r locks/serve.txt

# ----------------------------------------------------------------------------------------------------------- engine host
FROM base AS engines
# libnuma: vLLM's CPU build is linked against it. tcmalloc: its allocator of choice.
# Without versions: Debian keeps only the newest of each, and the base image's digest says which.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/*
ENV LD_PRELOAD=libtcmalloc_minimal.so.4 \
    VLLM_CACHE_ROOT=/tmp/vllm
COPY --from=build-engines /opt/chorus /opt/chorus
COPY config /app/config
WORKDIR /app
USER 10001:10001
EXPOSE 8090
HEALTHCHECK --interval=10s --timeout=3s --start-period=5m --retries=3 CMD ["python", "-c", \
    "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8090, timeout=2); c.request('GET', '/health'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["chorus"]
CMD ["engines", "/app/config/engines.yaml", "--host", "0.0.0.0", "--port", "8090", "--drain-s", "30"]

# --------------------------------------------------------------------------------------------------------------- gateway
FROM base AS gateway
COPY --from=build-gateway /opt/chorus /opt/chorus
COPY --from=build-embedder /var/lib/chorus /var/lib/chorus
COPY config /app/config
WORKDIR /app
USER 10001:10001
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=3s --start-period=1m --retries=3 CMD ["python", "-c", \
    "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8081, timeout=2); c.request('GET', '/readyz'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["chorus"]
CMD ["serve", "/app/config/gateway.yaml"]
