# Two commands set everything up: `make serve` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# tests side by side
WORKERS ?= 2

.PHONY: install serve test test-all test-kernels ops-tools check clean

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
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

test-all: install ops-tools test-kernels
	$(BIN)/python -m pytest $(ARGS)

# The Triton kernels, interpreted, beside the packages of $(VENV): the interpreter needs an older NumPy.
test-kernels: $(VENV)/kernels/.installed
	TRITON_INTERPRET=1 $(VENV)/kernels/bin/python -m pytest tests/test_triton.py

$(VENV)/kernels/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(VENV)/kernels
	$(VENV)/kernels/bin/python -m pip install --quiet --disable-pip-version-check triton==3.6.0 'numpy<2.4'
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(VENV)/kernels/bin/python \
		-c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	touch $@

ops-tools: install
	bash tests/ops_tools.sh $(VENV)/ops

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
