# Every target does all that a fresh machine with Python 3.11 or newer needs.

PYTHON ?= python3
# More options for pip, for example an index that has torch's small CPU wheels:
#   make PIP_OPTIONS='--extra-index-url https://download.pytorch.org/whl/cpu' demo
PIP_OPTIONS ?=
# Tests of one file stay in one process; each process holds models of its own. In the order of the
# files: by their number of tests the engines of tests/rtx would come last, and alone.
TEST_PROCESSES ?= --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# For all targets of `make fuzz` together.
FUZZ_MINUTES ?= 10

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input $(PIP_OPTIONS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-full fuzz lint clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Build the tiny bundle, check it, segment its scenes: build/demo
	$(BIN)/samforge demo --out build/demo

# A test process and what it starts share a core with others: more threads would only wait.
test: $(INSTALLED) ## Run the fast tests, offline
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_PROCESSES)

test-full: $(INSTALLED) ## Run the slow tests too (those for a GPU: pytest -m gpu)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_PROCESSES) -m "not gpu"

# What fails is kept in tests/fuzz/examples and tried first the next time.
fuzz: $(INSTALLED) ## Throw damaged files and arguments at everything, for FUZZ_MINUTES
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz \
	  -o python_files='fuzz_*.py' --minutes $(FUZZ_MINUTES)

lint: $(INSTALLED) ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean: ## Remove caches and what was built (not .venv)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch goes first and with its exact pin: any looser request resolves to gigabytes of CUDA.
# The build of samforge itself is isolated and needs hatchling only.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e '.[build,dev]'
	touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "samforge needs Python 3.11 or newer, and there is no $(PYTHON) here." \
	       "Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "samforge needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "The virtual environment could not be made." \
	       "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
