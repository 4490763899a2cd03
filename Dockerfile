# syntax=docker/dockerfile:1
#
#   docker build -t streamer:0.1.0 .                                     for CPUs
#   docker build -t streamer:0.1.0-gpu --build-arg VARIANT=gpu .         for NVIDIA GPUs (the driver comes from the host)
#
# The virtual environment is built where a compiler is, and copied into an image that has none. No model is inside: weights come from
# the config's paths or addresses and are kept under /cache.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG VARIANT=cpu
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN case "${VARIANT}" in cpu|gpu) ;; *) echo "VARIANT is cpu or gpu, not ${VARIANT}" >&2; exit 1 ;; esac \
    && python -m venv /opt/streamer
WORKDIR /src
# The packages first: a change of our own code does not download them again.
COPY pyproject.toml README.md ./
COPY constraints constraints
RUN mkdir streamer && touch streamer/__init__.py \
    && /opt/streamer/bin/pip install -c "constraints/${VARIANT}.txt" ".[${VARIANT}]" \
    && /opt/streamer/bin/pip uninstall --yes streamer
COPY streamer streamer
RUN /opt/streamer/bin/pip install --no-deps . \
    && /opt/streamer/bin/python -m compileall -q /opt/streamer/lib \
    && /opt/streamer/bin/streamer --version

FROM python:${PYTHON}-slim-bookworm
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
