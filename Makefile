# `make demo` and `make test` set everything up first; nothing but packages is downloaded.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
PIP    := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
BROWSER := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

.PHONY: help demo test test-all lint bench clean

help:
	@echo "make demo      set up, then run the first claim: telos check dpo"
	@echo "make test      set up, then lint, types and the tests (minutes)"
	@echo "make test-all  the same with the slow tests"
	@echo "make bench     measure against the peers, in environments of their own (25 minutes)"
	@echo "make clean     remove the environments"

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[lm,plots,site]"
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -e ".[lm,adapters,rl,mujoco,robots,mazes,purposes,plots,site,test]"
	@touch $@

$(VENV)/.browser: $(VENV)/.test
	$(PIP) -e ".[browser]"
	@touch $@

demo: $(VENV)/.demo
	$(VENV)/bin/telos check dpo

lint: $(VENV)/.test
	$(VENV)/bin/ruff check src tests bench
	$(VENV)/bin/ruff format --check src tests bench
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python src

# The page is tested in a real browser where there is one; its tests are skipped elsewhere.
test: lint $(if $(BROWSER),$(VENV)/.browser)
	$(PYTEST) -n 2 --dist loadfile -m "not slow"

test-all: lint $(VENV)/.browser
	$(PYTEST) -n 2 --dist loadfile

bench: $(VENV)/.test
	$(VENV)/bin/python bench/run.py

clean:
	rm -rf $(VENV) bench/.venv-*
