# The image of every process: Ray nodes, MLflow's server, jobs, and `valence up` on one machine.
#   docker build --tag valence .
#   docker build --tag valence-gpu --build-arg DEVICE=gpu .
# For a reproducible build name the base by digest: --build-arg BASE=python:3.11-slim-bookworm@sha256:…
ARG BASE=python:3.11-slim-bookworm
ARG DEVICE=cpu

FROM ${BASE} AS build
# An index with builds of torch for the device; without it the default index decides.
ARG TORCH_INDEX=
ARG PREFIX=/opt/valence
# What is optional beyond object storage: privacy for masking.
ARG EXTRAS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv "${PREFIX}"
COPY pyproject.toml constraints.txt requirements.txt ./
# The dependencies alone, so that a change of the sources leaves their layer as it is: each file by its digest, but for
# torch, whose builds differ, and which alone comes from its index.
RUN "${PREFIX}/bin/python" -m pip install --no-deps --require-hashes --requirement requirements.txt \
    && PIP_INDEX_URL="${TORCH_INDEX:-${PIP_INDEX_URL:-}}" "${PREFIX}/bin/python" -m pip install \
        --constraint constraints.txt torch
RUN "${PREFIX}/bin/python" -c 'import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*sum((project["optional-dependencies"][each] for each in sys.argv[1:]), []), sep="\n")' ${EXTRAS} > extras.txt \
    && "${PREFIX}/bin/python" -m pip install --constraint constraints.txt --requirement extras.txt
COPY . .
RUN "${PREFIX}/bin/python" -m pip install --no-deps .
# What is in the image, made by a tool that is not.
RUN python -m venv sbom \
    && sbom/bin/python -m pip install cyclonedx-bom==7.5.0 \
    && mkdir -p "${PREFIX}/share" \
    && sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
        --output-format JSON --output-file "${PREFIX}/share/sbom.cdx.json" "${PREFIX}/bin/python"
RUN "${PREFIX}/bin/python" -m pip uninstall --yes pip \
    # Those tests of torch's are for later Pythons.
    && python -m compileall -q -j 0 -x /torch/testing/ "${PREFIX}/lib"

FROM ${BASE} AS runtime-cpu
ARG PREFIX=/opt/valence
# KubeRay asks a worker by wget whether it serves, and starts containers by a shell that may set PATH anew.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && python -m pip uninstall --yes pip setuptools wheel \
    && groupadd --gid 10001 valence \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/valence --no-create-home --shell /usr/sbin/nologin valence \
    && install --directory --owner 10001 --group 10001 /var/lib/valence \
    && ln -s "${PREFIX}/bin/valence" "${PREFIX}/bin/ray" "${PREFIX}/bin/mlflow" /usr/local/bin/
COPY --from=build ${PREFIX} ${PREFIX}
# Everything is compiled, and the root file system may be read-only: /var/lib/valence and /tmp are mounts.
ENV PATH="${PREFIX}/bin:${PATH}" \
    HOME=/var/lib/valence \
    VALENCE_HOME=/var/lib/valence \
    VALENCE_HOST=0.0.0.0 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1

FROM runtime-cpu AS runtime-gpu
ENV VALENCE_ENGINE=torch \
    VALENCE_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# hadolint ignore=DL3006
FROM runtime-${DEVICE} AS image
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Valence" \
    org.opencontainers.image.description="Versioned sentiment models behind one URL, with a memory" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${BASE}"
USER 10001:10001
WORKDIR /var/lib/valence
VOLUME ["/var/lib/valence", "/tmp"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=3m \
    CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8000/health/ready"]
CMD ["valence", "up", "--foreground"]
