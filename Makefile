# Two commands set everything up: `make serve` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: install serve test test-all ops-tools check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[server,train,dev]"
	$(BIN)/python -m specdec.native_library
	touch $@

serve: install
	$(BIN)/python -m server $(ARGS)

test: install
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: install ops-tools
	$(BIN)/python -m pytest $(ARGS)

ops-tools: install
	bash tests/ops_tools.sh $(VENV)/ops

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
