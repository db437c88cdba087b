# `make quickstart` runs the example on real data, `make test` the tests; both set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart servers azurite test check bench bench-peers clean
.DEFAULT_GOAL := quickstart

$(BIN)/zenray: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[examples]'
	@touch $@

# A real MLflow server for the tests: 45 s and 800 MB, so it has an environment of its own.
.venv-mlflow/bin/mlflow:
	$(PYTHON) -m venv .venv-mlflow
	.venv-mlflow/bin/python -m pip install --quiet 'mlflow>=3.17'

# Azure's storage emulator for the tests: 16 s and 370 MB; without npm they are skipped, except in CI.
AZURITE := .azurite/node_modules/.bin/azurite-blob
azurite:
	@test -x $(AZURITE) || ! command -v npm >/dev/null || \
	npm install --silent --no-audit --no-fund --prefix .azurite azurite@3.37 || test -z "$$CI"

$(VENV)/.dev: $(BIN)/zenray pyproject.toml
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --group dev --editable '.[examples,sklearn,torch,pandas,polars]'
	@touch $@

# Debian's PostgreSQL, MariaDB and npm, for the tests of databases and Azure; without them these are skipped. Needs root.
servers:
	command -v mariadbd && command -v npm && ls /usr/lib/postgresql/*/bin/initdb || \
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql mariadb-server && \
	  { command -v npm || apt-get install -y -qq --no-install-recommends nodejs npm; }; }

quickstart: $(BIN)/zenray
	$(BIN)/zenray submit examples/flight_delays.py

test: $(VENV)/.dev .venv-mlflow/bin/mlflow azurite
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	for program in benchmarks/bench_*.py; do $(BIN)/python $$program || exit 1; done

bench-peers: $(VENV)/.dev
	$(BIN)/python benchmarks/peers/run.py
	$(BIN)/python benchmarks/peers/run.py --edits

clean:
	rm -rf $(VENV) .venv-peers .venv-mlflow .azurite .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
