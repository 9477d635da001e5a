# Three images from one file: `serve` (the default; without torch), `gpu` (serves on a CUDA device) and `train`.
#   docker build -t longshort .                           docker build --target train -t longshort-train .
#   docker build --target gpu -t longshort-gpu .
# Plain instructions only (no RUN --mount, no heredocs), so that every builder builds it. docs/containers.md has more.

ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# Where pip finds packages other than as it is set up: for example a folder of wheels inside the context.
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# One venv, made here and copied whole; pip works on it from outside and stays behind.
RUN python3 -m venv --without-pip /opt/venv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY model model
COPY service service
RUN python3 -m pip --python /opt/venv/bin/python3 install ./client ".[redis]" \
    && mkdir /models \
    && cp -r service/longshort_service/models/. /models/ \
    && chown -R 10001:10001 /models

FROM build AS train
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
# Another index for torch alone: PyTorch's own CPU builds spare 3 GB of CUDA libraries on x86-64.
ARG TORCH_INDEX
RUN python3 -m pip --python /opt/venv/bin/python3 install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "torch>=2.6" \
    && python3 -m pip --python /opt/venv/bin/python3 install ./client ".[train]"
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
WORKDIR /tmp
VOLUME /models
ENTRYPOINT ["longshort", "train"]
CMD ["--data", "metro", "--out", "/models"]

FROM build AS gpu-build
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
# What the gpu extra names, without onnxruntime: both packages write the same folder.
RUN python3 -m pip --python /opt/venv/bin/python3 uninstall --yes onnxruntime \
    && python3 -m pip --python /opt/venv/bin/python3 install "onnxruntime-gpu[cuda,cudnn]>=1.22"

FROM ${BASE} AS runtime
LABEL org.opencontainers.image.title="longshort" \
      org.opencontainers.image.description="Serves recurrent models: sessions that remember, batched at every step." \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    LONGSHORT_HOST=0.0.0.0 LONGSHORT_REPOSITORY=/models LONGSHORT_STORE=sqlite:////sessions/sessions.db
# A volume, so that sessions outlive the container where one is named, and are written under a read-only root anyway.
RUN mkdir /sessions && chown 10001:10001 /sessions
VOLUME /sessions
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /tmp
EXPOSE 50051 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["longshort", "health"]
# Exec form: the service is process 1 and gets SIGTERM itself. It drains for up to 20 s; allow 30.
ENTRYPOINT ["longshort"]
CMD ["serve"]

FROM runtime AS gpu
COPY --from=gpu-build /opt/venv /opt/venv
COPY --from=build --chown=10001:10001 /models /models
# The last two tell NVIDIA's container runtime to bring the driver's libraries in.
ENV LONGSHORT_PROVIDER=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS serve
COPY --from=build /opt/venv /opt/venv
# The shipped models; a new volume mounted here begins with them, so that a trained one can join them.
COPY --from=build --chown=10001:10001 /models /models
