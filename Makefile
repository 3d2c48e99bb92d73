# Two commands do everything on a fresh machine: `make reproduce` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: reproduce test lint bench clean

reproduce: $(VENV)/installed
	$(BIN)/nashpref reproduce

test: $(VENV)/installed lint
	$(BIN)/python -m pytest

# mypy looks for nashpref.theory inside nashpref/ and would silently skip the mapped folders: give it a tree
# of links in which they are where their names say.
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf .links && mkdir -p .links/nashpref
	for file in nashpref/*; do ln -s ../../$$file .links/$$file; done
	ln -s ../../theory ../../llm ../../experiments ../../paper_figs .links/nashpref/
	cd .links && ../$(BIN)/mypy --config-file ../pyproject.toml -p nashpref

bench: $(VENV)/bench
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/bench: $(VENV)/installed
	$(PIP) -e '.[test,bench]'
	touch $@

clean:
	rm -rf $(VENV) .links build dist results .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
