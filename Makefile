# One target a habit; `make help` lists them. Only Python >= 3.11 and a package registry are needed.
# Another Python: `make setup PYTHON=python3.12`. More arguments: `make test ARGS='-k ledger'`.

SHELL := /bin/sh
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Nothing of ours phones home: Flower's telemetry and update check are on by default.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup run test nightly check bench lock schema proto clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Create .venv and install every package at its locked version

# The lock carries a hash of pyproject's dependencies, so it alone decides whether the installation is current.
$(INSTALLED): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not: try 'make $(MAKECMDGOALS) PYTHON=python3.12'"; exit 1; }
	@echo "setup: creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m deploy.lock requirements --group dev --group ray > $(VENV)/requirements.txt
	@echo "setup: installing packages (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --requirement $(VENV)/requirements.txt --constraint constraints.txt
	@touch $@
	@echo "setup: done"

run: setup ## Simulate the default federation and say where its report lies (ARGS='--config FILE')
	@$(BIN)/python simulate.py $(ARGS)

# A test process for each core, so that the suite stays below a quarter of an hour; `-n 0` tests in one, for a debugger.
test: setup ## Run all tests (ARGS='tests/unit -k ledger' for some)
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

nightly: setup ## 1,000 kills, 10,000 ledgers, mutation tests
	@LEDGER_KILLS=1000 LEDGER_AGREEMENT=10000 $(BIN)/python -m pytest tests/integration/test_ledger_faults.py \
	  tests/unit/privacy/test_verify_ledger.py $(ARGS)
	@$(BIN)/python -m deploy.lock requirements --group nightly > $(VENV)/requirements.txt
	@$(BIN)/python -m pip install --quiet --requirement $(VENV)/requirements.txt --constraint constraints.txt
	@$(BIN)/python -m tests.mutation

check: setup ## Lint, format, types, direction of imports, lock
	@echo "check: ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "check: mypy"
	@$(BIN)/mypy
	@echo "check: import-linter"
	@$(BIN)/lint-imports
	@echo "check: lock"
	@$(BIN)/python -m deploy.lock check

bench: setup ## Print speed and memory as ratios; nothing passes or fails on time
	@$(BIN)/python -m tests.benchmarks $(ARGS)

lock: ## Renew constraints.txt from pyproject.toml (asks the package registry)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m deploy.lock renew

schema: setup ## Renew the JSON Schemas of configurations in deploy/configs
	@$(BIN)/python -m deploy config schema > deploy/configs/schema.json
	@$(BIN)/python -m deploy config schema --site > deploy/configs/site-schema.json

proto: ## Renew client/agent_pb2.py from client/agent.proto
	@$(BIN)/python -m pip install --quiet --target $(VENV)/proto grpcio-tools==1.76.0
	@PYTHONPATH=$(VENV)/proto $(BIN)/python -m grpc_tools.protoc -I. --python_out=. client/agent.proto

clean: ## Remove .venv and caches; results in runs/ stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
