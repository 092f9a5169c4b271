# Everything here needs Python 3.11 or newer with pip, and nothing else; tests of Kafka and S3 bring their own servers when Java and Maven, or Go, are there.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
STAMP := $(VENV)/.installed

# The newest Python is not always one that numba has wheels for, so the version that the tests run with comes first.
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3 python

MONTHS ?=
SEED ?= 1
SEEDS ?= 10000
DATA ?=
ARGS ?=
JOBS ?= 2

.PHONY: help setup demo demo-web test lint docs pictures bench bench-check scenarios chaos release-check clean

help: ## Show what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS=$$'\t' read -r target text; do \
		printf '  make %-14s %s\n' "$$target" "$$text"; \
	done

setup: $(STAMP) ## Make .venv and install flowstate with all its tools into it

$(STAMP): pyproject.toml
	@if [ ! -x "$(PYTHON)" ]; then \
		found=; \
		for each in $(PYTHONS); do \
			if "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found="$$each"; break; fi; \
		done; \
		if [ -z "$$found" ]; then echo "flowstate needs Python 3.11 or newer: install it and put it on PATH" >&2; exit 1; fi; \
		echo "setting up $(VENV) with $$("$$found" --version)"; \
		"$$found" -m venv $(VENV) >/dev/null 2>&1 \
			|| { rm -rf $(VENV) && "$$found" -m venv --without-pip $(VENV) && "$$found" -m pip --python $(PYTHON) install -q pip; } \
			|| { echo "could not make a virtual environment: install Python's venv module or pip" >&2; exit 1; }; \
	fi
	@$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[s3,demo,test,lint,docs,bench]'
	@echo "compiling the kernels, once per machine"
	@$(PYTHON) -c 'from flowstate import source; from flowstate.state import kernels; kernels.warm_up(); source.warm_up()'
	@touch $(STAMP)

demo: $(STAMP) ## Run the billing job live; MONTHS=12 runs that many months as fast as it can and checks them; SEED=, DATA=
	@exec $(PYTHON) examples/demo.py $(if $(MONTHS),--months $(MONTHS)) --seed $(SEED) $(if $(DATA),--data $(DATA)) $(ARGS)

demo-web: $(STAMP) ## The same behind a web page: pick a customer, kill a worker, watch; ARGS= goes to it, e.g. ARGS='--port 0'
	@exec $(PYTHON) examples/demo_web.py --seed $(SEED) $(if $(DATA),--data $(DATA)) $(ARGS)

test: $(STAMP) ## Run all tests in JOBS=2 processes; ARGS= goes to pytest, e.g. ARGS='-m "not slow" -k billing'
	@exec $(PYTHON) -m pytest -n $(JOBS) --dist loadscope $(ARGS)

lint: $(STAMP) ## Check style, format, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy flowstate flight_server/flowstate_flight flight_server/flowstate_http sql/flowstate_sql examples
	$(BIN)/lint-imports --no-cache

docs: $(STAMP) ## Make the book of docs/ in .cache/site; warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "open .cache/site/index.html"

pictures: $(STAMP) ## Draw the pictures of docs/pictures anew from the real things
	@FLOWSTATE_PICTURES=docs/pictures $(PYTHON) -m pytest -q tests/test_pictures.py
	@FLOWSTATE_PICTURES=docs/pictures $(PYTHON) -m pytest -q tests/test_web.py -k good_and_bad
	@rm -f docs/pictures/web-saved.png docs/pictures/web-gone.png

bench: $(STAMP) ## Measure; ARGS= goes to the benchmarks
	@exec $(PYTHON) -m benchmarks $(ARGS)

bench-check: $(STAMP) ## Compare ratios to peers with those that the repository keeps; ARGS= takes a file of figures
	@exec $(PYTHON) -m benchmarks.check $(ARGS)

scenarios: $(STAMP) ## Kill, stop and cut off real processes of the billing job; one table, docs/scenarios.md; ARGS= names some
	@exec $(PYTHON) -m benchmarks.scenarios $(if $(ARGS),$(ARGS),--write docs/scenarios.md)

chaos: $(STAMP) ## Simulate failures, one schedule for each of SEEDS= seeds
	@exec $(PYTHON) -m flowstate.testing.adversity --seeds $(SEEDS) $(ARGS)

release-check: $(STAMP) ## Build source distribution and wheel, install it in a new environment elsewhere, import it, run the demo
	@.ci/release-check $(PYTHON)

clean: ## Remove .venv and everything that was generated
	rm -rf $(VENV) build dist demo-data .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
