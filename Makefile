# All the set-up there is: `make repro` and `make test` work on a fresh machine with Python 3.11, git, make and g++.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install data repro demo test slow lint types clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
INSTALLED := .venv/.installed

# dvc finds `cad` only on PATH; a fixed hash seed and date keep results free of chance and clock
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONHASHSEED := 0
export SOURCE_DATE_EPOCH := 0
export DVC_NO_ANALYTICS := 1

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(INSTALLED) ## make .venv with the exact versions of constraints.txt

data: $(INSTALLED)
	test -d data || dvc pull data.dvc

repro: $(INSTALLED) ## run the main job, from one image to Table 1, and show the report
	dvc pull data.dvc
	cad repro
	cad report show

demo: $(INSTALLED) ## show packed results in seconds, without training
	test -d data/demo || dvc pull data.dvc
	cad demo show

test: data ## run the fast tests
	pytest -m "not slow and not gpu"

slow: data ## run the slow tests
	pytest -m "slow and not gpu"

lint: $(INSTALLED) ## check style and format of imports
	ruff check .

types: $(INSTALLED) ## check types
	mypy

clean: ## remove work in progress of stages, and caches; results, small models in training and the environment stay
	if test -d .work; then find .work -maxdepth 1 -regextype posix-extended \
		-regex '\.work/[0-9a-f]{16}(\.lock|\.failed)?' -exec rm -rf {} +; fi
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find cad tests -name __pycache__ -type d -prune -exec rm -rf {} +
