# `make` lists the targets. Only Python 3.11 or newer, make and PyPI are needed; nothing here asks for root.

STORE ?= $(if $(GRID_STORE),$(GRID_STORE),file://./store)
SPLIT ?= fraction
NAME  ?= $(shell printf '%s' '$(SRC)' | sed -E 's:/+$$::; s:.*/::; s/[?\#].*//; s/\.(zip|t[abgx]z2?|tar(\.[a-z0-9]+)?)$$//')
GRID  ?=
SRC   ?=
EXCLUDE ?=
ARGS  ?=

UV_VERSION = 0.13.9
VENV       = .venv
BIN        = $(VENV)/bin
STAMP      = $(VENV)/.made-by-make
GRID_CLI   = $(BIN)/grid --store '$(STORE)'
CODE       = trainer controller tests $(wildcard benchmarks)
SHELL      = /bin/bash
MAKEFLAGS += --no-print-directory
# torch is 2,600 modules: without the bytecode kept beside them every start would compile them anew, for seconds
unexport PYTHONDONTWRITEBYTECODE

export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL = help
.PHONY: help setup demo test check format data plan run status table bench clean need-grid need-source

help: ## list the targets
	@printf 'experiment-grid: a grid of real networks on real images, and one table to compare them.\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nBegin with `make demo`. STORE=URI chooses another store (now %s).\n' '$(STORE)'
	@printf 'The command behind it is %s; it has more to offer: `%s --help`.\n' '$(BIN)/grid' '$(BIN)/grid'

setup: $(STAMP) ## install everything into .venv, from uv.lock

# uv: the one on PATH, or a private one in .uv
$(STAMP): pyproject.toml uv.lock
	@set -eu; \
	uv=$$(command -v uv || true); \
	if [ -z "$$uv" ] || ! "$$uv" --version >/dev/null 2>&1; then \
	  uv=.uv/bin/uv; \
	  if ! "$$uv" --version >/dev/null 2>&1; then \
	    python=; \
	    for each in python3.13 python3.12 python3.11 python3 python; do \
	      if command -v $$each >/dev/null && \
	        $$each -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then python=$$each; break; fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	      echo 'error: no Python 3.11, 3.12 or 3.13 found' >&2; \
	      echo 'hint: install one, for example with your package manager, and run make again' >&2; \
	      exit 1; \
	    fi; \
	    echo "setup: fetching uv $(UV_VERSION) into .uv with $$python"; \
	    $$python -m venv .uv || { echo 'hint: on Debian and Ubuntu, venv is the package python3-venv' >&2; exit 1; }; \
	    .uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); \
	  fi; \
	fi; \
	echo 'setup: installing the locked packages into $(VENV) (torch is large: minutes the first time)'; \
	env -u VIRTUAL_ENV "$$uv" sync --frozen --extra demo --quiet; \
	touch $@; \
	echo 'setup: done'

demo: setup ## train a small grid on handwritten digits and print its table (under 3 minutes)
	@echo 'demo: 1 of 3, the digits become an image folder and then a data set'
	@$(BIN)/grid data digits .cache/digits
	@$(GRID_CLI) data import digits .cache/digits
	@echo 'demo: 2 of 3, the grid trains'
	@$(GRID_CLI) run demo
	@echo 'demo: 3 of 3, the table'
	@$(GRID_CLI) table demo

test: setup ## run the tests
	@$(BIN)/python -m pytest -q -n 2 $(ARGS)

check: setup ## everything CI checks: format, lint, types, imports, docs, then the tests
	@echo 'check: format';  $(BIN)/ruff format --check --quiet $(CODE) || { echo 'hint: make format' >&2; exit 1; }
	@echo 'check: lint';    $(BIN)/ruff check --quiet $(CODE)
	@echo 'check: types';   $(BIN)/mypy --no-error-summary
	@echo 'check: imports'; out=$$($(BIN)/lint-imports --no-cache 2>&1) || { echo "$$out"; exit 1; }
	@echo 'check: docs';    $(BIN)/python -m controller.reference --check
	@echo 'check: tests';   $(MAKE) test

format: setup ## rewrite the code in the one format
	@$(BIN)/ruff format --quiet $(CODE)
	@$(BIN)/ruff check --quiet --fix $(CODE)

data: need-source setup ## import images: SRC=folder|archive|URL [NAME= SPLIT= EXCLUDE='a b']
	@$(GRID_CLI) data import '$(NAME)' '$(SRC)' --split '$(SPLIT)' $(foreach class,$(EXCLUDE),--exclude '$(class)') $(ARGS)

plan: need-grid setup ## what GRID=name would train, before anything does
	@$(GRID_CLI) plan '$(GRID)' $(ARGS)

run: need-grid setup ## train what GRID=name lacks; Ctrl-C saves, the same command goes on
	@$(GRID_CLI) run '$(GRID)' $(ARGS)

status: need-grid setup ## how far GRID=name is
	@$(GRID_CLI) status '$(GRID)' $(ARGS)

table: need-grid setup ## the table of GRID=name
	@$(GRID_CLI) table '$(GRID)' $(ARGS)

bench: setup ## measure the speeds of docs/benchmarks.md on this machine
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove what make made: .venv, .uv and caches; the store stays
	rm -rf $(VENV) .uv .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo 'clean: the store ($(STORE)) is as it was; remove it yourself if you mean to'

need-grid:
	@if [ -z '$(GRID)' ]; then \
	  echo 'error: GRID is missing, expected the name of a grid or a path to one' >&2; \
	  echo 'hint: make $(firstword $(MAKECMDGOALS)) GRID=demo; $(BIN)/grid list shows the names' >&2; exit 64; fi

need-source:
	@if [ -z '$(SRC)' ]; then \
	  echo 'error: SRC is missing, expected a folder of class folders, an archive or a URL' >&2; \
	  echo 'hint: make data SRC=~/101_ObjectCategories NAME=caltech101 EXCLUDE=BACKGROUND_Google' >&2; exit 64; fi
