# `make` lists what there is to do.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two workers share the tests out (tests/shares.py); a test that takes a worker down ends the run.
WORKERS ?= 2
SHARED := -n $(WORKERS) --dist loadfile --max-worker-restart 0
QUICK := not slow and not slurm and not distributed and not gpu
export PIP_DEFAULT_TIMEOUT ?= 60
# One thread for each process: the tests start several ranks on a few cores.
test unit slurm soak: export OMP_NUM_THREADS := 1

.PHONY: help env demo test lint format types imports unit slurm soak points lock clean fuzz

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

env: $(INSTALLED) ## make or refresh .venv with the versions of requirements.lock

# apt-get is run only by root; everybody else is told what to install.
define NEED_PACKAGES
need() { \
	echo "missing on this machine: $$1"; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing $$2 with apt-get"; \
		apt-get update -q; \
		DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$2; \
	else \
		echo "  install it first, on Debian or Ubuntu: sudo apt-get install $$2"; \
		return 1; \
	fi; \
}
endef

$(INSTALLED): pyproject.toml requirements.lock $(wildcard data_prep/native/*.[ch] pipeline/data/native/*.[ch] pipeline/data/native/*/*.[ch])
	@$(NEED_PACKAGES); \
	new_enough() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }; \
	if ! command -v "$(PYTHON)" >/dev/null; then need "$(PYTHON)" "python3 python3-venv"; fi; \
	if ! new_enough "$(PYTHON)"; then \
		echo "$(PYTHON) is $$("$(PYTHON)" -V), but Python 3.11 or newer is needed:"; \
		echo "  install one and name it: make env PYTHON=python3.12"; \
		exit 1; \
	fi; \
	if ! "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then \
		need "Python's venv module" "python3-venv"; \
	fi; \
	if ! command -v c++ >/dev/null; then \
		need "a C++ compiler" "build-essential python3-dev" \
			|| echo "going on without: images load 2 to 4 times slower"; \
	fi; \
	if ! printf '#include <stdio.h>\n#include <jpeglib.h>\n' | cc -E -x c - >/dev/null 2>&1; then \
		need "libjpeg-turbo's headers" "libjpeg-dev" \
			|| echo "going on without: --transcode lossless is refused"; \
	fi; \
	if ! new_enough $(BIN)/python 2>/dev/null || ! $(PIP) --version >/dev/null 2>&1; then \
		echo "making $(VENV) with $$("$(PYTHON)" -V)"; \
		"$(PYTHON)" -m venv --clear $(VENV); \
	fi
	@echo "installing into $(VENV) (PyTorch and its CUDA libraries: some GB on the first time)"
	@$(PIP) install --retries 10 -c requirements.lock -e '.[dev]'
	@touch $@

demo: env ## everything once, small: shards, training, registry, finetuning, report
	@$(BIN)/python -m launch demo

test: env lint types imports ## everything that can be checked here (PYTEST_ARGS=... is passed on)
	@$(BIN)/pytest $(SHARED) --cov --cov-report=term --durations=10 $(PYTEST_ARGS)

lint: env ## rules and formatting of the code (ruff)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: env ## mend what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: env ## type checks (pyright)
	@$(BIN)/pyright --project pyproject.toml

imports: env ## which room may import which (import-linter)
	@$(BIN)/lint-imports

unit: env ## the fast tests only (PYTEST_ARGS=... is passed on)
	@$(BIN)/pytest $(SHARED) -m '$(QUICK)' $(PYTEST_ARGS)

slurm: env ## the tests on the SLURM testbed only (root; slurm-wlm and munge installed)
	@REQUIRE_SLURM=1 $(BIN)/pytest -m slurm $(PYTEST_ARGS)

soak: env ## an hour of faults at a training on the testbed, compared with peace (SOAK_ARGS=...)
	@$(BIN)/python -m tests.soak --minutes 60 --mtbf-s 60 --nodes 3 $(SOAK_ARGS)

points: export OMP_NUM_THREADS := 1
points: env ## trainings interrupted at 80 random points, compared with peace (POINTS_ARGS=...)
	@$(BIN)/python -m tests.soak.points $(POINTS_ARGS)

fuzz: env ## fuzz the extension: decoder, then operations (clang; FUZZ_S=60 seconds each)
	@tests/fuzz/run.sh crop $(or $(FUZZ_S),60)
	@tests/fuzz/run.sh ops $(or $(FUZZ_S),60)

lock: env ## write requirements.lock again from what .venv holds
	@sed -n '/^#/p' requirements.lock > requirements.lock.new
	@$(PIP) list --format=freeze --exclude-editable --exclude pip --exclude wheel >> requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@touch $(INSTALLED)

clean: ## remove caches and coverage data (never .venv, runs or mlflow.db)
	@rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* \
		htmlcov build dist *.egg-info
	@find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +
