# Everything a newcomer needs: `make run` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: run test test-all tests up status down lint lock clean help

run: .venv/.ready ## run the recipe `digits` end to end
	@$(BIN)/bloomery run digits

test: .venv/.ready ## check style, types and import rules, and run the tests of each change
	@$(MAKE) --no-print-directory --jobs 2 lint tests

test-all: .venv/.ready ## the same with the nightly tests, which try more cases of the same paths
	@BLOOMERY_TESTS=all $(MAKE) --no-print-directory --jobs 2 lint tests WHICH=

WHICH := -m "not nightly"
tests: .venv/.ready
	@# Bytecode is written even where the environment forbids it: else each process compiles all modules and tests again.
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest $(WHICH) --numprocesses 2 --dist loadfile --no-loadscope-reorder

up: .venv/.ready ## start Prefect, MLflow, a worker and the endpoints, and keep them up
	@$(BIN)/bloomery up $(RECIPES)

status: .venv/.ready ## show the state of the services
	@$(BIN)/bloomery status

down: .venv/.ready ## stop what `up` started
	@$(BIN)/bloomery down

lint: .venv/.ready ## check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

lock: ## resolve requirements.lock again from pyproject.toml (needs uv)
	.ci/lock

clean: ## remove what was installed and every cache; the state folder .bloomery stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

# The stamp comes last, so that an interrupted installation starts again.
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Bloomery needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 run")'
	@echo "Setting up .venv from requirements.lock; this takes a few minutes, once."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --no-build-isolation --editable .
	@# Without bytecode Prefect and MLflow take twice to four times as long to import.
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # a file for another Python does not compile
	@touch $@
