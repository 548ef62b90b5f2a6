# Two commands set everything up on a bare machine with Python 3.11 to 3.14: `make demo` and `make test`.
# Each target installs what it needs, from pinned versions, into .venv and only when that has changed.
# After the installation nothing here needs a network.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= out

# pip picks the CPU build of torch on macOS and Windows. On Linux without a GPU, save gigabytes with
#   export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt

export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export WANDB_MODE := disabled
export DO_NOT_TRACK := 1
# Threads that wait do not spin: on a busy machine spinning costs several times what it can save on an idle one.
export OMP_WAIT_POLICY := PASSIVE

PROJECTS := $(wildcard packages/*/pyproject.toml)
CORE     := packages/nnm-core packages/nnm-mini
SOURCES  := packages/nnm-core/src packages/nnm-mini/src packages/langchain-nnm/langchain_nnm \
            packages/llamaindex-nnm/llamaindex_nnm
PROGRAMS := benchmarks examples packages/nnm-mini/training packages/nnm-mini/training/recipe

PYTEST_ARGS ?= -n auto --dist loadfile
EXAMPLES    := $(sort $(wildcard examples/*.py))

.PHONY: help demo test test-fast lint format types bench examples clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(VENV)/.demo  ## real documents, four ways to answer, one table, one plot, one page
	$(BIN)/nnm demo --out $(OUT)/demo --json $(OUT)/demo/demo.json

test: $(VENV)/.dev  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: $(VENV)/.dev  ## the tests without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow"

lint: $(VENV)/.lint  ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.lint  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev  ## mypy --strict over the packages, benchmarks, examples and training
	$(BIN)/mypy $(SOURCES) $(wildcard $(PROGRAMS:%=%/*.py))

bench: $(VENV)/.dev  ## every measurement: docs/results.md from out/bench; DATA=folder, QUICK=1, AGAIN=1
	$(BIN)/python benchmarks/run_all.py --out $(OUT)/bench $(if $(DATA),--data $(DATA)) $(if $(AGAIN),--again) \
	  $(if $(QUICK),--quick,--page docs/results.md) $(BENCH_ARGS)

examples: $(VENV)/.dev  ## run every program in examples/
	@set -e; for program in $(EXAMPLES); do echo "== $$program"; $(BIN)/python -W error::DeprecationWarning:__main__ $$program; done

clean:  ## remove the environment and everything that was generated
	rm -rf $(VENV) $(OUT) dist build .pytest_cache .mypy_cache .ruff_cache .coverage
	find packages tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments -----------------------------------------------------------------------------------------------

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo "Python 3.11 to 3.14 is needed; '$(PYTHON)' is not. Say which one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Could not make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@touch $@

# The build backend is installed beside the packages, so that installing them fetches nothing that is not pinned.
$(VENV)/.build: $(VENV)/.venv constraints.txt
	$(PIP) hatchling editables setuptools wheel
	@touch $@

$(VENV)/.lint: $(VENV)/.venv constraints.txt
	$(PIP) ruff
	@touch $@

$(VENV)/.demo: $(VENV)/.build $(CORE:%=%/pyproject.toml)
	@echo "Installing what the demo needs (once) ..."
	$(PIP) --no-build-isolation --editable "packages/nnm-core[demo]" --editable packages/nnm-mini
	@touch $@

$(VENV)/.dev: $(VENV)/.build $(PROJECTS) requirements-dev.txt
	@echo "Installing the packages and what the checks need (once) ..."
	$(PIP) --no-build-isolation --editable "packages/nnm-core[lens,bench,structured]" --editable packages/nnm-mini \
	  --editable packages/langchain-nnm --editable packages/llamaindex-nnm --requirement requirements-dev.txt
	@touch $@ $(VENV)/.demo $(VENV)/.lint
