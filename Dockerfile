#   docker build -t streamer:0.1.0 .                                     for CPUs
#   docker build -t streamer:0.1.0-gpu --build-arg VARIANT=gpu .         for NVIDIA GPUs (the driver comes from the host)
#
# The virtual environment is built in one stage and copied into another, so that the image has
# nothing but it. No model is inside: weights come from the config's paths or addresses and are kept
# under /cache.
#
# Every package is verified by its sha256 (locks/), and so is the base image: a tag can be moved, its
# digest cannot. This one is the index for all platforms of October 2026, with Python 3.12.15. For a
# newer one: docker buildx imagetools inspect python:3.12-slim-bookworm; for a registry of your own:
# --build-arg BASE=…

ARG BASE=python:3.12-slim-bookworm@sha256:54c85f3c47607a77f32adec749d3c81d1348bf25833671f512b26a9b6d778cb3

FROM ${BASE} AS build
ARG VARIANT=cpu
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN case "${VARIANT}" in cpu|gpu) ;; *) echo "VARIANT is cpu or gpu, not ${VARIANT}" >&2; exit 1 ;; esac \
    && python -m venv /opt/streamer
WORKDIR /src
# The packages first: a change of our own code does not download them again.
COPY locks locks
RUN /opt/streamer/bin/pip install --require-hashes -r "locks/${VARIANT}.txt"
# Then streamer from what is here alone: what it needs and is not locked ends the build.
COPY pyproject.toml README.md ./
COPY streamer streamer
RUN /opt/streamer/bin/pip install --no-index --no-build-isolation ".[${VARIANT}]" \
    && /opt/streamer/bin/python -m compileall -q /opt/streamer/lib \
    && /opt/streamer/bin/streamer --version

FROM ${BASE}
ARG VARIANT=cpu
LABEL org.opencontainers.image.title="streamer" \
      org.opencontainers.image.description="Curates image-text data from Kafka as it arrives, exactly once" \
      org.opencontainers.image.licenses="Apache-2.0" \
      streamer.variant="${VARIANT}"
COPY --from=build /opt/streamer /opt/streamer
# A numeric user, so that Kubernetes can see that it is not root. /app is the place for plugins: it is on the import path.
RUN groupadd --gid 10001 streamer \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /cache --shell /usr/sbin/nologin streamer \
    && install --directory --owner=10001 --group=10001 /cache /app /out
ENV PATH=/opt/streamer/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    STREAMER_CONFIG=/etc/streamer/streamer.yaml
USER 10001:10001
WORKDIR /app
EXPOSE 9400
# For Docker and Compose, at the default http.port; Kubernetes uses its own probes.
HEALTHCHECK --interval=20s --timeout=10s --start-period=30m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9400/livez', timeout=8)"]
# No shell in between: SIGTERM reaches the process, which drains, seals, commits and exits 0.
ENTRYPOINT ["streamer"]
CMD ["run"]
