# Every target makes the environment first if it is missing or its pins moved.
# The first of the Pythons that pyproject.toml names and that runs: a version manager's command may
# stand for a Python that it does not have.
VERSIONS := $(shell sed -n 's/.*:: Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml)
ASK    := import sys; print(sys.argv[1] if "{}.{}".format(*sys.version_info) in sys.argv[2:] else "")
PYTHON ?= $(firstword $(foreach p,$(VERSIONS:%=python%) python3 python,\
	$(shell $(p) -c '$(ASK)' $(p) $(VERSIONS) 2>/dev/null)))
VENV   ?= .venv
BIN    := $(VENV)/bin
# Hundreds of processes start in a test run, and each would compile the suite and its tests anew.
unexport PYTHONDONTWRITEBYTECODE
# pip compiles what it installs on one core; this takes all of them, for the files that `find` is told.
# Nothing may be left to be compiled at import, where a test makes each warning an error; but what
# packages test themselves with is never imported.
COMPILE = find $(VENV)/lib -name '*.py' ! -path '$(VENV)/lib/*/tests/*' $(1) -print0 | \
	xargs -0 -n 500 -P 8 $(BIN)/python -W ignore -m compileall -qq || true
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt
STAMP  := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
PYTEST := $(BIN)/python -m pytest
WORKERS := from resnet8_eval.environment import usable_cores; print(usable_cores() + 1)

.DEFAULT_GOAL := help
.PHONY: help report test lint types unit acceptance bench clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

report: $(STAMP) ## Run all milestones (real assets, else the stand-in) and leave reports/report.html
	$(PYTEST) tests/acceptance --assets auto --layers $(if $(SEEDS),--seeds $(SEEDS))

test: lint types unit acceptance ## Everything that must hold: lint, types, unit, fault and acceptance tests

lint: $(DEV) ## Lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) ## Type check
	$(BIN)/mypy

# One worker more than there are cores: many tests wait for processes of their own.
unit: $(DEV) ## Unit, fault and browser tests, on the stand-in or smaller
	$(PYTEST) -n $$($(BIN)/python -c '$(WORKERS)') --dist loadfile --no-loadscope-reorder tests --ignore tests/acceptance

# Speed is measured in the second run, on whatever that runs.
acceptance: $(STAMP) ## Requirement tests: on the stand-in always, then on the real assets where they can be had
	$(PYTEST) tests/acceptance --assets stand-in --reports-dir=reports/stand-in -k 'not eval_05'
	$(PYTEST) tests/acceptance --assets auto

bench: $(DEV) ## Measure speed on the real assets, beside a plain script; some 15 minutes, on an idle machine
	$(BIN)/python -m benchmarks.bench

clean: ## Remove the environment and everything generated
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
	find reports -mindepth 1 ! -name README.md -delete

# What `make report` needs, and on top of it what only the suite's own tests need.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python found. Expected: one of $(VERSIONS), as python3.x or" \
	  "python3. Next: install one, or name it: make report PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Installing TensorFlow, ONNX Runtime, PyTorch and the suite into $(VENV)/: some minutes and 3 GB, or 7 with CUDA"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@$(call COMPILE)
	@touch $@

# Tests of accessibility need axe-core; without npm they are skipped, and say so.
$(DEV): $(STAMP)
	@echo "Installing what only the suite's own tests need"
	$(PIP) -e '.[dev]'
	@$(call COMPILE,-cnewer $(STAMP))
	-command -v npm >/dev/null && npm install --silent --no-fund --no-audit --prefix $(VENV)/axe axe-core@4.10.3
	@touch $@
