# Every target creates .venv on first use. You need Python 3.11 or newer and make.

PYTHON ?= python3
ARGS ?=
TESTERS ?= 2
BIN := .venv/bin
READY := .venv/.ready
PYTEST := -m pytest -n $(TESTERS) --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-all coverage lint format docs package bench venv clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1 - /p' Makefile

demo: $(READY)  ## prune a real network without data and print a table
	@$(BIN)/gaprune demo $(ARGS)

test: $(READY)  ## run the quick tests in two processes (ARGS="-k budget" selects some, TESTERS=0 uses one process)
	@$(BIN)/python $(PYTEST) -m "not slow" $(ARGS)

test-all: $(READY)  ## run the slow tests too: lost nodes, signals, every fault
	@$(BIN)/python $(PYTEST) $(ARGS)

coverage: $(READY)  ## report which lines of gaprune/ the quick tests run
	@$(BIN)/coverage erase
	@$(BIN)/coverage run $(PYTEST) -m "not slow" $(ARGS)
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report

lint: $(READY)  ## check style, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(READY)  ## reformat the code
	@$(BIN)/ruff format

docs: $(READY)  ## build docs/ into site/; warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: $(READY)  ## build sdist and wheel and try the wheel in a fresh environment
	@sh scripts/check_package.sh

bench: $(READY)  ## reproduce the quality table (takes hours)
	@$(BIN)/python -m benchmarks.quality $(ARGS)

venv: $(READY)  ## create .venv only

clean:  ## remove .venv and all caches
	@rm -rf .venv build dist site .coverage* *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt scripts/setup_venv.sh
	@sh scripts/setup_venv.sh "$(PYTHON)"
	@touch $@
