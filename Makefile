# Everything a person needs: `make up` and `make test` set up what is missing by themselves.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
ARGS ?=
PYTEST_ARGS ?=
SERVICES ?= embedded
JOBS ?= 2
STACKS ?= 3
MINUTES ?= 10
SEED ?=

.PHONY: up test lint bench faults mutants soak lock clean help
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1	/' | expand -t 16

up: $(VENV)/.runtime ## start everything; options as ARGS="--kafka memory --http-port 9000"
	@exec $(BIN)/trueboard up $(ARGS)

test: $(VENV)/.dev ## the linters, the types, the picture of imports, all tests
	$(MAKE) --no-print-directory lint
	$(BIN)/pytest --services=$(SERVICES) -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.dev ## the linters, the types and the picture of imports
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev ## the published numbers again; options as ARGS="…"
	@for file in bench/*.py; do \
		case "$$file" in */_*) continue;; esac; \
		echo "== $$file"; $(BIN)/python "$$file" $(ARGS) || exit 1; done

faults: $(VENV)/.dev ## every row of the fault matrix, on STACKS=3 at a time; renews docs/reliability.md
	THOROUGH=1 FAULTS_RESULTS=tests/faults/results.json $(BIN)/pytest tests/faults/test_rows.py \
		-m "long or not long" -n $(STACKS) --dist load --maxschedchunk 1 $(PYTEST_ARGS); \
		result=$$?; $(BIN)/python -m tests.faults.table; exit $$result

mutants: $(VENV)/.dev ## the product with one clause left out at a time, on STACKS=3; renews docs/reliability.md
	MUTANTS_RESULTS=tests/faults/mutants.json $(BIN)/pytest tests/faults/test_mutants.py \
		-m "long or not long" -n $(STACKS) --dist load --maxschedchunk 1 $(PYTEST_ARGS); \
		result=$$?; $(BIN)/python -m tests.faults.mutants --table; exit $$result

soak: $(VENV)/.dev ## faults at random: MINUTES=10 SEED=7
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

lock: $(VENV)/.uv ## resolve the requirements again
	for name in bootstrap dev runtime; do \
		constraint=""; [ $$name = runtime ] && constraint="--constraint requirements/dev.txt"; \
		$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
			$$constraint --output-file requirements/$$name.txt requirements/$$name.in || exit 1; done

clean: ## remove what was set up here; data directories stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

# Stamps: a step is done again when what it was done from has changed.

$(VENV)/.uv: requirements/bootstrap.txt
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed; install it, or name it with PYTHON=…" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { \
		echo "make: $(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv" >&2; \
		rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@touch $@

$(VENV)/.runtime: requirements/runtime.txt pyproject.toml $(VENV)/.uv
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/runtime.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@
