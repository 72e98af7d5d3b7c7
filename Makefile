# Everything a newcomer needs: `make demo` or `make test` set up what is missing and run. Nothing global, no root, no Docker.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2

.PHONY: setup demo test lint types house unit faults fuzz bench up clean

setup: .venv/.ready

# uv is put inside the virtual environment, pinned with its hashes; it then installs exactly uv.lock.
.venv/.ready: pyproject.toml uv.lock deploy/bootstrap.txt protos/generate.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "opsmesh needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the locked packages into .venv ..."
	@$(BIN)/python -m pip install --quiet --require-hashes --disable-pip-version-check -r deploy/bootstrap.txt
	@$(BIN)/uv sync --frozen --quiet --python $(BIN)/python
	@$(BIN)/python protos/generate.py --validate
	@touch $@

demo: setup
	@$(BIN)/opsmesh demo

test: lint types house unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/python protos/generate.py --image build/opsmesh.binpb
	$(BIN)/buf lint build/opsmesh.binpb#format=binpb --config buf.yaml

types: setup
	$(BIN)/mypy services tests protos/generate.py

house: setup
	$(BIN)/lint-imports

unit: setup
# The stores of tests are started by fork, and gRPC's own handlers have brought down a child of a busy process.
	GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/pytest -n $(WORKERS) --dist loadgroup

# SEED, ALERTS, ROUNDS, CALLS, KILLS and INTAKE_ALERTS (of the intake) and WRITE=--write (renew docs/reliability.md) are optional.
faults: setup
	@$(BIN)/python -m tests.faults $(if $(SEED),--seed $(SEED)) $(if $(ALERTS),--alerts $(ALERTS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(CALLS),--calls $(CALLS)) $(if $(RUN_CALLS),--run-calls $(RUN_CALLS)) $(if $(KILLS),--kills $(KILLS)) $(if $(INTAKE_ALERTS),--intake-alerts $(INTAKE_ALERTS)) $(WRITE)
	@$(BIN)/python -m tests.gateway.pauses

# SECONDS for all targets together, or EXAMPLES for each, SEED and ONLY (a word of a target's name) are optional.
fuzz: setup
	@$(BIN)/python -W ignore -m tests.fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(if $(EXAMPLES),--examples $(EXAMPLES)) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only "$(ONLY)")

bench: setup
	@$(BIN)/python -m tests.bench

up: setup
	@$(BIN)/opsmesh up

clean:
	rm -rf .venv .opsmesh build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
