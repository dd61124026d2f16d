# Everything a newcomer needs is `make demo` and `make test`; both install what they need first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Two processes; each test file stays in one of them, with its fixtures. The order is that of the files: the longest,
# end_to_end and faults, come early.
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: install demo check test test-fast lock clean

install: $(STAMP)

# uv comes from the lock too. Bytecode is compiled once here, because every Ray worker would otherwise pay for it.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.lock)"
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --compile-bytecode --requirement requirements.lock
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --no-deps --editable .
	touch $(STAMP)

# The main job on the embedded testbed: leaves demo/report.html and demo/results.json.
demo: $(STAMP)
	$(BIN)/counterpoise run demo store=demo/store --out demo

# Style, types and who may import whom: under a minute.
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) --quiet tests/test_layers.py

test: check
	$(PYTEST) $(PARALLEL)

# Without the tests marked slow (tests/conftest.py): no Ray, no training of more than some seconds.
test-fast: $(STAMP)
	$(PYTEST) $(PARALLEL) -m "not slow" --timeout 60

# Resolves the versions anew; commit the result together with whatever it made necessary.
lock:
	$(BIN)/uv pip compile --python-version 3.11 --no-header --no-annotate --no-emit-index-url --extra dev \
	  pyproject.toml --output-file requirements.lock
	sed -i '1i # The versions that the tests pass with; `make lock` writes this file anew.\nuv==0.13.8' requirements.lock

clean:
	rm -rf demo reports .mypy_cache .pytest_cache .ruff_cache
