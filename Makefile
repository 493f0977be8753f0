# make demo   compare DAFNet, ROME, FT and others on a real language model through EasyEdit
# make test   run the tests
#
# Both first make .venv with the pinned versions of constraints.txt. They need Python 3.10-3.12, git and make.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
LOG := $(VENV)/install.log
PIP := $(BIN)/python -m pip

# Shows pip's progress as one line and keeps all it says in $(LOG).
QUIETLY = 2>&1 | tee -a $(LOG) | awk ' \
	/^ *Collecting / { n++; printf "\r   %3d packages, now %-40.40s", n, $$2; fflush() } \
	/^ *Downloading .* \([0-9.]+ [MG]B\)/ { printf "\r   downloading %-50.50s", $$2 " " $$3 " " $$4; fflush() } \
	/^Installing collected/ { printf "\r   %-60s", "unpacking " NF - 3 " packages"; fflush() } \
	/^ERROR/ { printf "\n%s", $$0 } \
	END { printf "\r%-64s\r", "" }' \
	|| { echo; echo "   the installation failed: $(LOG) says why"; exit 1; }

.PHONY: help demo test slow lint clean

help: ## list these commands
	@grep -E '^[a-z]+:.*##' Makefile | awk -F ':.*## ' '{ printf "make %-7s %s\n", $$1, $$2 }'

demo: $(STAMP) ## compare DAFNet, ROME, FT and others on SmolLM2, print the table, write the report
	@echo "== Editing SmolLM2 through EasyEdit: the benchmark's quick suite"
	@$(BIN)/easyedit-dafnet bench --suite quick --out results/demo --jobs 2
	@$(BIN)/easyedit-dafnet report results/demo
	@echo "== Open results/demo/report/report.html in a browser"

test: $(STAMP) ## run the tests
	@echo "== Running the tests"
	@$(BIN)/python -m pytest

slow: $(STAMP) ## run the tests that take minutes each
	@echo "== Running the slow tests"
	@$(BIN)/python -m pytest -m slow

lint: $(STAMP) ## check format, style and types
	@echo "== Checking format, style and types"
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

clean: ## remove the environment and everything that runs have written
	rm -rf $(VENV) build dist logs results runs .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "Python 3.10, 3.11 or 3.12 is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "== 1/5 Making the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@: > $(LOG)
	@$(PIP) install -c constraints.txt hatchling setuptools $(QUIETLY)
	@echo "== 2/5 Installing PyTorch"
	@$(PIP) install torch==2.13.0 -c constraints.txt $(QUIETLY)
	@echo "== 3/5 Installing what EasyEdit imports, the tools and this project"
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[host,dev]' $(QUIETLY)
	@echo "== 4/5 Installing EasyEdit 0.0.1.dev0"
	@$(PIP) install --no-deps easyeditor==0.0.1.dev0 $(QUIETLY)
	@echo "== 5/5 Done, $$(du -sh $(VENV) | cut -f1) in $(VENV)"
	@touch $@
