# Everything is installed into .venv on first use, and again when pyproject.toml or constraints.txt change.
PYTHON ?= python3
PREFECT_PORT ?=
MLFLOW_PORT ?=
ARGS ?=

PY := .venv/bin/python
READY := .venv/.installed
SERVICES := $(PY) -m flows.services

.DEFAULT_GOAL := help
.PHONY: help run test lint docs up down ui doctor clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## run the pipeline and compare the methods; ARGS="--recipe mnist_cpu --methods at tla", ARGS=--help
	@$(PY) -m flows.full $(ARGS)

test: lint ## check style and types, then run all tests; ARGS="-m 'not e2e'" skips the slow ones
	$(PY) -m pytest $(ARGS)

lint: $(READY) ## check style and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy trl tasks flows

docs: $(READY) ## build the documentation in site/; fails on any warning
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

up: $(READY) ## start Prefect (server, worker) and MLflow, or what of them is missing; PREFECT_PORT=4200 MLFLOW_PORT=5000
	@$(SERVICES) up $(PREFECT_PORT:%=--prefect-port %) $(MLFLOW_PORT:%=--mlflow-port %)

down: $(READY) ## stop what `make up` started
	@$(SERVICES) down

ui: $(READY) ## serve MLflow's UI with all runs; MLFLOW_PORT=5000
	@$(SERVICES) ui $(MLFLOW_PORT:%=--mlflow-port %)

doctor: $(READY) ## check the machine and the services; names each fault and its remedy
	@$(PY) -m flows.doctor

clean: ## remove caches; results, checkpoints and .venv stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 or newer; choose one: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "installing into .venv; this takes a few minutes the first time ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,dev,docs]'
	@touch $@
