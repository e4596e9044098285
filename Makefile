# make demo and make test set up what they need, once: Python 3.11 or newer and make are enough.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format bench venv clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /make \1 - /p' Makefile

demo: $(READY)  ## prune a real network without data and print the table
	@$(BIN)/gaprune demo $(ARGS)

test: $(READY)  ## run the tests; make test ARGS="-k budget" runs some
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: $(READY)  ## run the slow ones as well: lost nodes, signals, every fault
	@$(BIN)/python -m pytest $(ARGS)

lint: $(READY)  ## check style, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(READY)  ## write the format that lint checks
	@$(BIN)/ruff format

bench: $(READY)  ## reproduce the quality table (hours)
	@$(BIN)/python -m benchmarks.quality $(ARGS)

venv: $(READY)  ## set up .venv only

clean:  ## remove .venv and all caches
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt scripts/setup_venv.sh
	@sh scripts/setup_venv.sh "$(PYTHON)"
	@touch $@
