# Every target makes the environment first if it is missing or its pins moved.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help report test lint types unit acceptance bench clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

report: $(STAMP) ## Run all milestones (real assets, else the stand-in) and leave reports/report.html
	$(PYTEST) tests/acceptance --assets auto --layers

test: lint types unit acceptance ## Everything that must hold: lint, types, unit, fault and acceptance tests

lint: $(STAMP) ## Lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## Type check
	$(BIN)/mypy

unit: $(STAMP) ## Unit, fault and browser tests, on the stand-in or smaller
	$(PYTEST) -n auto --dist loadfile tests --ignore tests/acceptance

acceptance: $(STAMP) ## Requirement tests: on the stand-in always, then on the real assets where they can be had
	$(PYTEST) tests/acceptance --assets stand-in --reports-dir=reports/stand-in
	$(PYTEST) tests/acceptance --assets auto

bench: $(STAMP) ## Measure speed on the real assets, beside a plain script; some 15 minutes, on an idle machine
	$(BIN)/python -m benchmarks.bench

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
	find reports -mindepth 1 ! -name README.md -delete

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
