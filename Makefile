# Every target makes what it needs: `make demo` and `make test` work in a fresh clone.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_VENV := .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.installed

.PHONY: help demo test test-slow lint format docs bench bench-quick clean

help:
	@echo 'make demo        install, then run the whole method on generated data (about 10 minutes) in demo/'
	@echo 'make test        run the tests (make test-slow: the long ones)'
	@echo 'make lint        ruff, formatting, mypy --strict, generated files'
	@echo 'make docs        regenerate the reference, man pages and completions'
	@echo 'make bench       measure, and write docs/benchmarks.md (bench-quick: under 3 minutes, prints)'

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The peers of the benchmarks pin versions of their own, so they get an environment of their own.
$(BENCH_STAMP): pyproject.toml constraints.txt
	test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch setuptools
	$(BENCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

demo: $(STAMP)
	test -e demo/Makefile || $(BIN)/rlhfkit init demo
	PATH="$(CURDIR)/$(BIN):$$PATH" $(MAKE) -C demo -j2

# One thread per test process: two of them use two cores.
test: export OMP_NUM_THREADS ?= 1
test: $(STAMP)
	$(BIN)/python -m pytest -n 2

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m rlhfkit.cli.docs --check

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m rlhfkit.cli.docs

# BENCH='--only ppo --nanogpt ../nanoGPT' measures a row again, or adds a peer.
bench: $(BENCH_STAMP)
	$(BENCH_VENV)/bin/python -m benchmarks $(BENCH)

bench-quick: $(BENCH_STAMP)
	$(BENCH_VENV)/bin/python -m benchmarks --quick $(BENCH)

clean:
	rm -rf demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
