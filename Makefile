.DEFAULT_GOAL := help
.PHONY: help up down test test-full check bench eyes faults soak lock audit sbom secrets train-proof format k8s-check k8s-deploy image-check
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
BIN := .venv/bin
BENTOML := 1.4.39
CHROMADB := 1.5.9
HNSWLIB := 0.8.0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

help: ## say what can be made
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)$$/make \1\t\2/p' Makefile | expand -t 14

up: .venv/.installed ## set up, start the platform in the background, make one prediction
	@$(BIN)/valence up

down: ## stop what `make up` started; data stays
	@if [ -x $(BIN)/valence ]; then $(BIN)/valence down; fi

# Each file, or live platform of acceptance tests, runs in one of two workers; what ARGS names runs in this process.
PARALLEL := --numprocesses 2 --dist loadscope --no-loadscope-reorder --durations 60

test: .venv/.developed .cache/clients/.installed ## set up and run the test suite; ARGS="tests/unit -k name" for a part
	@$(BIN)/python -m pytest $(or $(ARGS),$(PARALLEL))

test-full: .venv/.developed .cache/clients/.installed ## the same with slow tests, and property tests and simulations in full
	@$(BIN)/python -m pytest --full $(or $(ARGS),$(PARALLEL))

check: .venv/.developed ## format, lint, types, import contract, migrations against tables
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m db.embedded.schema_check

eyes: .venv/.developed ## alerts by promtool; dashboards, logs and traces on a platform of its own under Debian's Prometheus
	@CI=true $(BIN)/python -m pytest -v -s tests/unit/k8s/test_alerts.py tests/acceptance/watched/test_monitoring.py

BENCHMARKS := first_answer single_texts large_batches fairness overload storing search three_heads transport anatomy promotion evaluating trials privacy similarity quantised words near_duplicates languages idle

bench: .venv/.developed .cache/bentoml/.installed .cache/vectors/.installed ## every benchmark, as tables; they start platforms of their own (an hour and a half)
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done
	@$(BIN)/python -m benchmarks.heads

faults: .venv/.developed ## hurt platforms of its own on purpose; writes the table of docs/faults.md (a quarter of an hour)
	@$(BIN)/python -m benchmarks.faults

soak: .venv/.developed ## use a platform of its own for an hour; writes the tables of docs/soak.md
	@$(BIN)/python -m benchmarks.soak

# What torch's default build needs for a GPU comes with torch, which is installed from the index for the device.
WITH_TORCH := torch triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc \
  cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)

lock: .cache/supply/.installed ## write requirements.txt: what the image installs, with the digest of each file
	@.cache/supply/bin/uv pip compile --quiet pyproject.toml --extra s3 --constraint constraints.txt \
	  --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  $(addprefix --no-emit-package ,$(WITH_TORCH)) --custom-compile-command 'make lock' --output-file requirements.txt

audit: .cache/supply/.installed ## look for known vulnerabilities in everything that constraints.txt pins
	@.cache/supply/bin/pip-audit --no-deps --disable-pip --requirement constraints.txt

sbom: .venv/.installed .cache/supply/.installed ## list what is installed in .venv, as CycloneDX, in sbom.cdx.json
	@.cache/supply/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-format JSON --output-file sbom.cdx.json .venv/bin/python

# Digests and the words of examples look like secrets to the others.
NOISY := HexHighEntropyString Base64HighEntropyString KeywordDetector BasicAuthDetector

secrets: .cache/supply/.installed ## look in the files that git knows for keys of known forms: private keys, clouds, hubs
	@git ls-files -z | xargs -0 .cache/supply/bin/detect-secrets-hook $(addprefix --disable-plugin ,$(NOISY))

train-proof: .venv/.developed ## train head and joint model anew (40 minutes, 5 GB) and compare them with the committed ones
	@rm -rf .cache/proof
	@for kind in head joint; do \
	  $(BIN)/valence train $$kind .cache/proof/$$kind && \
	  $(BIN)/python -m benchmarks.same_bundle .cache/proof/$$kind registry/builtin/$$kind || exit 1; \
	done

OVERLAY ?= local

k8s-check: .venv/.developed ## render every overlay of k8s/ and check its form, references and security
	@$(BIN)/python -m k8s.check

image-check: .venv/.developed ## lint the Dockerfile, run its steps in a fresh folder and `valence --help` from it
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/python -m k8s.image

k8s-deploy: ## deploy or upgrade on Kubernetes; OVERLAY=local, production or gpu
	@kubectl delete job --namespace valence --ignore-not-found valence-migrate valence-register
	@kubectl apply --kustomize k8s/overlays/$(OVERLAY)
	@kubectl wait --namespace valence --for=condition=Complete --timeout=15m job/valence-migrate job/valence-register
	@kubectl wait --namespace valence --for=condition=Ready --timeout=15m rayservice/valence

format: .venv/.developed ## rewrite the sources in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Valence needs Python 3.11 or later: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.created pyproject.toml constraints.txt
	@echo "installing the pinned dependencies into .venv"
	@$(BIN)/python tools/install.py --constraint constraints.txt --editable .
	@touch $@

.venv/.developed: .venv/.installed
	@echo "installing the tools for tests and checks"
	@$(BIN)/python tools/install.py --constraint constraints.txt --editable '.[test,dev,bench]'
	@touch $@

# Clients of other projects, which tests/clients runs; those in JavaScript only where there is npm, those that come with
# servers only for the versions of Python that they are made for.
CLIENTS_INSTALL := .cache/clients/bin/python tools/install.py
.cache/clients/.installed: .venv/.created $(wildcard tests/clients/requirements*.txt) tests/clients/package.json
	@echo "installing the clients of other projects in an environment of their own"
	@$(PYTHON) -m venv .cache/clients
	@$(CLIENTS_INSTALL) --requirement tests/clients/requirements.txt
	@$(CLIENTS_INSTALL) --requirement tests/clients/requirements-servers.txt \
	  && $(CLIENTS_INSTALL) --no-deps --requirement tests/clients/requirements-alone.txt \
	  || echo "kserve or mlserver can't be installed here: their tests are skipped" >&2
	@cp tests/clients/package.json .cache/clients/
	@if command -v npm >/dev/null; then \
	  npm install --prefix .cache/clients --silent --no-audit --no-fund --no-package-lock --ignore-scripts; \
	fi
	@touch $@

# Tools that look at the dependencies and the sources, and that nothing here depends on.
.cache/supply/.installed: .venv/.created Makefile
	@$(PYTHON) -m venv .cache/supply
	@.cache/supply/bin/python -m pip install --quiet --disable-pip-version-check \
	  cyclonedx-bom==7.5.0 detect-secrets==1.5.0 pip-audit==2.10.1 uv==0.13.9
	@touch $@

# BentoML pins other versions of what Valence is built on, so it lives apart.
.cache/bentoml/.installed: .venv/.created
	@echo "installing BentoML in an environment of its own"
	@$(PYTHON) -m venv .cache/bentoml
	@.cache/bentoml/bin/python -m pip install --quiet --disable-pip-version-check \
	  'bentoml==$(BENTOML)' tokenizers onnxruntime openvino safetensors vaderSentiment
	@touch $@

# Likewise what keeps vectors only.
.cache/vectors/.installed: .venv/.created
	@echo "installing hnswlib and Chroma in an environment of their own"
	@$(PYTHON) -m venv .cache/vectors
	@.cache/vectors/bin/python -m pip install --quiet --disable-pip-version-check \
	  'chromadb==$(CHROMADB)' 'hnswlib==$(HNSWLIB)'
	@touch $@
