# The commands to know: make serve, make test, make demo, make check. Everything else serves these.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install parts serve pacs pacs-stop demo test check lint types starter phantoms clean

# Threads that spin while they wait take the cores from each other (docs/BENCHMARKS.md).
export OMP_WAIT_POLICY := PASSIVE

VENV    := .venv
PY      := $(VENV)/bin/python
# The first Python that this project runs on; override with `make PYTHON=/path/to/python3.11 ...`.
PYTHON  ?= $(firstword $(foreach v,python3.11 python3.12 python3.10 python3,$(shell command -v $(v) 2>/dev/null)))
HOST    ?= 127.0.0.1
PORT    ?= 8000
PACS_PORT ?= 8042
STUDIES ?=
CONF    ?=
DATA    ?=
OUT     ?= demo-out
TESTS   ?= tests

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | column -ts $$'\t'

install: $(VENV)/.installed  ## .venv with exactly the versions of constraints.txt

$(VENV)/.installed: constraints.txt pyproject.toml
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/install.sh
	@touch $@

parts:  ## Orthanc and Chromium by apt: what `make pacs` starts and the browser tests drive
	@bash scripts/install-parts.sh

pacs: install parts  ## Orthanc with DICOMweb and sample studies, in the background: PACS_PORT
	@$(PY) -m hermes.pacs start --directory campaigns/pacs --port "$(PACS_PORT)"

pacs-stop: install  ## end what `make pacs` started; its studies stay
	@$(PY) -m hermes.pacs stop --directory campaigns/pacs

serve: install  ## the server: STUDIES=DIR, a DICOMweb URL or pacs (default: a copy of the sample campaign) CONF="key=value ..." HOST PORT
	@$(PY) -m hermes.serve --host "$(HOST)" --port "$(PORT)" --studies "$(STUDIES)" --conf "$(CONF)"

demo: install  ## an annotator played over HTTP for several rounds: DATA=DIR (images/ and labels/) OUT=demo-out
	@$(PY) -m hermes.demo --data "$(DATA)" --out "$(OUT)" --conf "$(CONF)" $(DEMO)

# Tests that share nothing run two at a time; servers, the PACS and browsers have the machine for themselves.
ALONGSIDE := tests/unit tests/property
test: install  ## all tests; TESTS=tests/unit for a part
ifeq ($(TESTS),tests)
	@$(PY) -m pytest -n 2 $(ALONGSIDE)
	@$(PY) -m pytest $(addprefix --ignore=,$(ALONGSIDE)) tests
else
	@$(PY) -m pytest $(TESTS)
endif

check: install lint types test  ## format, lint, types, tests: what CI runs

lint: install
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

types: install
	@$(PY) -m mypy

starter: install  ## train the starter model again (about 20 minutes)
	@$(PY) -m hermes.starter --out apps/hermes/starter.new
	@rm -rf apps/hermes/starter && mv apps/hermes/starter.new apps/hermes/starter

phantoms: install  ## generate sample-data/ and the pictures of docs/ again
	@$(PY) -m hermes.phantoms samples sample-data && $(PY) -m hermes.phantoms pictures docs/images

clean:  ## forget the environment and all output; campaigns/ stays
	@rm -rf $(VENV) demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
