# Everything here needs Python 3.11+ and make, nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# With gpu too, the GPU's kernels are tested: on a GPU, or in Triton's interpreter. PyPI's torch for Linux takes gigabytes.
# With interop, other programs read what we write; with destripe, that option of the flat fields.
EXTRAS ?= test
CONSTRAINTS ?= constraints.txt
READY  := $(VENV)/.installed
# Two files of tests at a time; what the tests of a file share is made once.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-basic untyped test-all lint format clean
.DELETE_ON_ERROR:

demo: $(READY)      ## raw tiles to region table, on an acquisition the demo makes itself
	$(BIN)/cloudreg demo cloudreg-demo

test: lint          ## lint, types, and every test that takes less than a minute
	$(PYTEST) -m "not slow"

test-basic:         ## the tests on the older numpy and scipy that the extra basic takes, whose types are others
	$(MAKE) untyped VENV=.venv-basic EXTRAS=test,basic CONSTRAINTS=constraints-basic.txt

untyped: $(READY)
	$(PYTEST) -m "not slow"

test-all: lint      ## the slow tests too
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "CloudReg needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	touch $@
