# The commands of a working copy. They need GNU make and Python 3.11 or newer, and write to .venv, build, models.
PYTHON ?= python3
GRPC_PORT ?= 50051
METRICS_PORT ?= 9464
# The build that CI trains with. On Linux x86-64 the plain package may bring 3 GB of CUDA libraries: let
# TORCH_INDEX name PyTorch's own index of CPU builds, or TORCH another version.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
PYTEST_FLAGS ?=
# Each file of tests runs in one of so many processes; most of their time goes to services that they start and wait for.
TEST_PROCESSES ?= 2
# smoke (1 minute), quick (10), full (an hour), durable (3), million.
BENCH ?= quick
CHAOS_FAULTS ?= 50
CHAOS_SEED ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
PACKAGES := pyproject.toml client/pyproject.toml
# The folder of one's own models, where the demo finds one of its two in it; the shipped ones otherwise.
MODELS = $(if $(wildcard models/metro/*/model.onnx models/parking/*/model.onnx),models)

.DEFAULT_GOAL := help
.PHONY: help run demo train test long chaos check stubs bench clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help: ## Say what there is to make.
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r target words; \
	do printf '%-14s %s\n' "$$target" "$$words"; done

run: .venv/with-demo ## Start the service, see it work, and go on serving until Ctrl-C.
	$(BIN)/longshort demo --serve --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT) $(MODELS)

demo: .venv/with-demo ## The same, and end; the figures are in build/demo.json.
	$(BIN)/longshort demo --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT) $(MODELS)

train: .venv/with-torch ## Train the shipped models anew into models/; the scores are in build/train.json.
	$(BIN)/longshort train --shipped --out models --report build

test: .venv/with-dev build/public-models/made build/triton-clients/made ## Run the tests; what needs an engine or Debian packages skips visibly.
	$(BIN)/python -m pytest -m "not long" --numprocesses $(TEST_PROCESSES) --dist loadfile $(PYTEST_FLAGS)

long: .venv/with-dev ## Run the long tests: a kill at every point, chaos, Envoy, training anew.
	$(BIN)/python -m pytest -m long $(PYTEST_FLAGS)

# CHAOS_SEED repeats a run: the faults and their order, not the machine's mood.
chaos: .venv/with-dev ## Kill, freeze and cut off servers under load, 50 times each way; CHAOS_FAULTS, CHAOS_SEED.
	CHAOS_FAULTS=$(CHAOS_FAULTS) CHAOS_SEED=$(CHAOS_SEED) $(BIN)/python -m pytest -s $(PYTEST_FLAGS) tests/test_chaos.py

check: .venv/with-dev ## Format, lint, types, proto lint, generated code without difference.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint
	rm -rf build/stubs
	PYTHON=$(BIN)/python tools/generate_stubs.sh build/stubs
	diff --recursive --exclude=__init__.py --exclude=__pycache__ build/stubs/longshort/v1 client/longshort/v1
	diff --recursive --exclude=__init__.py --exclude=__pycache__ build/stubs/inference service/longshort_service/inference

stubs: .venv/with-dev ## Generate from proto/ what client/ and service/ speak it with.
	PYTHON=$(BIN)/python tools/generate_stubs.sh

# The load client is C++: Debian's g++, pkg-config and libgrpc++-dev.
bench: .venv/with-dev ## Measure the service beside its rivals; BENCH=smoke, quick, full, durable or million.
	$(BIN)/python -m bench $(BENCH)

clean: ## Remove what was made here, trained models excepted.
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage *.egg-info client/*.egg-info

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$(PYTHON) is no Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

.venv/with-demo: .venv/made $(PACKAGES)
	@echo "installing the service and its client (half a minute)"
	$(PIP) install --editable ./client --editable '.[demo,redis]'
	@touch $@

.venv/with-torch: .venv/made $(PACKAGES)
	@echo "installing PyTorch (a minute or more)"
	$(PIP) install $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)') '$(TORCH)'
	$(PIP) install --editable ./client --editable '.[train]'
	@touch $@

# In one command with the packages, so that one version of protobuf is found that all can use.
.venv/with-dev: .venv/with-torch
	@echo "installing the tools for tests and checks"
	$(PIP) install --editable ./client --editable '.[train]' --group dev
	@touch $@

# 40 MB of others' packages whose models the tests serve: unpacked, not installed.
build/public-models/made: tools/fetch_public_models.py | .venv/made
	$(BIN)/python tools/fetch_public_models.py

# What Triton's users have: tritonclient in an environment of its own, and perf-analyzer (200 MB).
build/triton-clients/made: tools/fetch_triton_clients.py | .venv/made
	$(BIN)/python tools/fetch_triton_clients.py
