# covey: `make demo` and `make test` work on a fresh machine with Python 3.11 to 3.13, git and make.
# Each target sets up what it needs, says what it does, and does nothing twice.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first Python that is new enough and not too new (libp2p and the model engine have wheels for these).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)

.PHONY: help install models demo test lint types check bench bench-quality laws chaos soak lock clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## Make .venv with the pinned dependencies and covey itself

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "covey needs Python 3.11, 3.12 or 3.13 with venv; none was found (name one: make PYTHON=/path/to/python3.11)"; exit 1; }
	@echo "==> $$($(PYTHON) --version): making $(VENV) and installing what requirements.lock names (about 350 MB, no compiler needed)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps --only-binary :all: \
		--no-binary varint,python-baseconv -r requirements.lock
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps --no-build-isolation -e .
	@# trio_typing (which libp2p imports) brings stubs of an old trio, which would hide trio's own types.
	@rm -rf $(VENV)/lib/python*/site-packages/trio-stubs
	@touch $@
	@echo "==> installed: $$($(BIN)/covey version)"

models: $(STAMP) ## Fetch the models once into the cache that all homes share (190 MB to fetch, 250 MB to keep)
	@$(BIN)/covey models pull --cache-only
	@$(BIN)/covey models pull --cache-only smollm2-135m-instruct-ct

demo: models ## Three real peers on this machine, a real model, one command
	@$(BIN)/python examples/demo $(DEMO_ARGS)

test: models ## All tests (under 10 minutes on 2 cores)
	@echo "==> everything but whole meshes, two at a time"
	@$(BIN)/pytest -q -n 2 --dist loadfile --durations=10 tests --ignore tests/end_to_end
	@echo "==> whole meshes of real peers, one after the other"
	@$(BIN)/pytest -q --durations=10 tests/end_to_end

lint: $(STAMP) ## Style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP) ## mypy and pyright, both strict
	@$(BIN)/mypy && PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pyright

check: lint types ## Style and types

bench: models ## Measured speed, each figure beside its baseline
	@$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

bench-quality: models ## Accuracy of the skills on labelled items, beside the majority class
	@$(BIN)/python benchmarks/quality.py $(BENCH_ARGS)

laws: $(STAMP) ## The property tests and the simulator, longer
	@HYPOTHESIS_PROFILE=long COVEY_SIM_SEEDS=400 $(BIN)/pytest -q -n 2 tests \
		-m "not end_to_end and not model and not netns"

chaos: models ## SIGKILL by seed on a mesh of real peers and amid writes of the memory; a cut of 90 s
	@COVEY_CHAOS_ROUNDS=50 $(BIN)/pytest -q -s tests/end_to_end/test_chaos.py
	@COVEY_KILL_ROUNDS=200 $(BIN)/pytest -q tests/test_peer/test_memory_store.py -k half_written
	@COVEY_CUT_S=90 $(BIN)/pytest -q -s tests/end_to_end/test_memory_apart.py

soak: models ## A standing mesh under steady work for an hour: memory, descriptors and tasks must stay flat
	@$(BIN)/python benchmarks/soak.py $(SOAK_ARGS)

lock: $(STAMP) ## Resolve requirements.in anew (needs uv)
	@uv pip compile --universal -p 3.11 --override requirements-overrides.txt --generate-hashes --no-header \
		--no-annotate --no-emit-index-url --no-emit-find-links --quiet requirements.in -o requirements.lock

clean: ## Remove the environment and caches (not the models)
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info src/*.egg-info
