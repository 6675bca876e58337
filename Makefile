# `make` lists the targets. Only Python 3.11 or newer, make and PyPI are needed; nothing here asks for root.

STORE ?= $(if $(GRID_STORE),$(GRID_STORE),file://./store)
SPLIT ?= fraction
NAME  ?= $(shell printf '%s' '$(SRC)' | sed -E 's:/+$$::; s:.*/::; s/[?\#].*//; s/\.(zip|t[abgx]z2?|tar(\.[a-z0-9]+)?)$$//')
GRID  ?=
SRC   ?=
EXCLUDE ?=
ARGS  ?=
CLUSTER ?=
SETTINGS ?=
RUN ?=
PURGE ?=
LONG ?=
ENV ?=

UV_VERSION = 0.13.9
VENV       = .venv
BIN        = $(VENV)/bin
STAMP      = $(VENV)/.made-by-make
GRID_CLI   = $(BIN)/grid --store '$(STORE)'
ON_CLUSTER = $(if $(SETTINGS),--settings '$(SETTINGS)')
CODE       = trainer controller tests benchmarks k8s
SHELL      = /bin/bash
MAKEFLAGS += --no-print-directory
# torch is 2,600 modules: without the bytecode kept beside them every start would compile them anew, for seconds
unexport PYTHONDONTWRITEBYTECODE

export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL = help
.PHONY: image kind-up kind-env kind-down deploy test-cluster submit watch logs pause resume cancel need-run need-env
.PHONY: help setup demo test check format data plan run status table report digits bench clean need-grid need-source

help: ## list the targets
	@printf 'experiment-grid: a grid of real networks on real images, and one table to compare them.\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
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
	env -u VIRTUAL_ENV "$$uv" sync --frozen --all-extras --quiet; \
	touch $@; \
	echo 'setup: done'

demo: setup ## train a small grid on handwritten digits and print its table (under 3 minutes)
	@echo 'demo: 1 of 3, the digits become an image folder and then a data set'
	@$(MAKE) --no-print-directory digits
	@echo 'demo: 2 of 3, the grid trains'
	@$(GRID_CLI) run demo
	@echo 'demo: 3 of 3, the table'
	@$(GRID_CLI) table demo

report: need-grid setup ## train what GRID=name lacks, then write its report: one HTML page, and its figures
	@$(if $(filter %.mini,$(GRID)),$(MAKE) --no-print-directory digits)
	@$(GRID_CLI) run '$(GRID)' $(ARGS)
	@$(GRID_CLI) report '$(GRID)'

digits: setup
	@$(BIN)/grid data digits .cache/digits
	@$(GRID_CLI) data import digits .cache/digits

test: setup ## run the tests
	@$(BIN)/python -m pytest -q -n 2 $(ARGS)

check: setup ## everything CI checks: format, lint, types, imports, docs, then the tests
	@echo 'check: format';  $(BIN)/ruff format --check --quiet $(CODE) || { echo 'hint: make format' >&2; exit 1; }
	@echo 'check: lint';    $(BIN)/ruff check --quiet $(CODE)
	@echo 'check: types';   $(BIN)/mypy --no-error-summary && \
	  MYPYPATH=tests:tests/trainer $(BIN)/mypy --no-error-summary --explicit-package-bases tests/cluster # seldom run: read
	@echo 'check: imports'; out=$$($(BIN)/lint-imports --no-cache 2>&1) || { echo "$$out"; exit 1; }
	@echo 'check: docs';    $(BIN)/python -m controller.reference --check
	@$(BIN)/python -m k8s.monitoring --check
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
	@$(GRID_CLI) status '$(GRID)' $(ON_CLUSTER) $(ARGS)

table: need-grid setup ## the table of GRID=name
	@$(GRID_CLI) table '$(GRID)' $(ARGS)

deploy: need-env ## namespace, rights, network rules and controller on the cluster: ENV=kind, or ENV=gpu for your kubeconfig's
	@if [ '$(ENV)' = kind ]; then exec $(MAKE) kind-up; fi; \
	if ! command -v kubectl >/dev/null; then \
	  echo 'error: no kubectl on the PATH' >&2; echo 'hint: https://kubernetes.io/docs/tasks/tools/' >&2; exit 69; fi; \
	kubectl apply -k 'k8s/overlays/$(ENV)' && \
	kubectl -n experiment-grid rollout status deployment/controller --timeout=300s

submit: need-grid setup ## make Jobs of what GRID=name lacks, on the cluster of kubeconfig [SETTINGS=file]
	@$(GRID_CLI) submit '$(GRID)' $(ON_CLUSTER) $(ARGS)

watch: need-grid setup ## go on with a submitted GRID=name and show how far it is; Ctrl-C leaves it running
	@$(GRID_CLI) watch '$(GRID)' $(ON_CLUSTER) $(ARGS)

logs: need-run setup ## the log of RUN=id, from its pod or the store; ARGS=-f follows
	@$(GRID_CLI) logs '$(RUN)' $(ON_CLUSTER) $(ARGS)

pause: need-grid setup ## stop GRID=name on its cluster; each run saves a checkpoint
	@$(GRID_CLI) pause '$(GRID)' $(ON_CLUSTER) $(ARGS)

resume: need-grid setup ## go on with a paused or cancelled GRID=name
	@$(GRID_CLI) resume '$(GRID)' $(ON_CLUSTER) $(ARGS)

cancel: need-grid setup ## take GRID=name off its cluster; results and checkpoints stay
	@$(GRID_CLI) cancel '$(GRID)' $(ON_CLUSTER) $(ARGS)

bench: setup ## measure the speeds of docs/benchmarks.md on this machine
	@$(BIN)/python -m benchmarks $(ARGS)

image: setup ## build the image of trainer and controller
	@$(BIN)/python -m k8s.kind image

kind-up: setup ## a Kubernetes cluster on this machine, with registry, image, S3 server and controller
	@$(BIN)/python -m k8s.kind up >/dev/null

kind-env: ## where that cluster and its store are, as exports for the shell: eval "$$(make kind-env)"
	@$(BIN)/python -m k8s.kind env

kind-down: setup ## remove that cluster and all that runs of it; PURGE=yes removes what was built, too
	@$(BIN)/python -m k8s.kind down $(if $(filter yes,$(PURGE)),--purge)

# CLUSTER=existing runs the same tests on the cluster of the current kubeconfig; tests/cluster/conftest.py says how
test-cluster: setup ## run the tests that need a cluster, on that one: LONG=yes all of them, CLUSTER=existing on yours
	@$(if $(filter existing,$(CLUSTER)),,$(BIN)/python -m k8s.kind up >/dev/null)
	@$(if $(filter yes,$(LONG)),,echo 'test-cluster: without those marked long, which take most of an hour: LONG=yes runs them, too')
	@GRID_TEST_CLUSTER=$(or $(CLUSTER),kind) $(BIN)/python -m pytest -q tests/cluster \
	  $(if $(filter yes,$(LONG)),,-m 'not long') $(ARGS)

clean: ## remove what make made: .venv, .uv and caches; the store stays
	rm -rf $(VENV) .uv .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo 'clean: the store ($(STORE)) is as it was; remove it yourself if you mean to'

need-grid:
	@if [ -z '$(GRID)' ]; then \
	  echo 'error: GRID is missing, expected the name of a grid or a path to one' >&2; \
	  echo 'hint: make $(firstword $(MAKECMDGOALS)) GRID=demo; $(BIN)/grid list shows the names' >&2; exit 64; fi

need-env:
	@if [ ! -f 'k8s/overlays/$(ENV)/kustomization.yaml' ]; then \
	  echo "error: ENV: got '$(ENV)', expected one of $$(ls k8s/overlays | tr '\n' ' ')" >&2; \
	  echo 'hint: make deploy ENV=kind for a cluster on this machine, ENV=gpu for the one of your kubeconfig' >&2; exit 64; fi

need-run:
	@if [ -z '$(RUN)' ]; then \
	  echo 'error: RUN is missing, expected the id of a run' >&2; \
	  echo 'hint: make logs RUN=resnet18-0123456789ab; $(BIN)/grid status GRID --json shows the ids' >&2; exit 64; fi

need-source:
	@if [ -z '$(SRC)' ]; then \
	  echo 'error: SRC is missing, expected a folder of class folders, an archive or a URL' >&2; \
	  echo 'hint: make data SRC=~/101_ObjectCategories NAME=caltech101 EXCLUDE=BACKGROUND_Google' >&2; exit 64; fi
