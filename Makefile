# Two commands matter on a fresh machine: `make serve` and `make test`. Everything they need they install into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
HOST   ?= 127.0.0.1
PORT   ?= 2024
CONFIG ?=
SEED   ?= 100
ONLY   ?=

.PHONY: help install serve test browser check format bench faults pooler wheel openapi clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  \033[1m%-9s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.test ## Make .venv with everything: the store, its extras, the tools

$(VENV)/.%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "runs-es needs Python 3.11 or newer, and '$(PYTHON)' is not. Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) .ci/install.py $* $(VENV)

serve: $(VENV)/.serve ## Run the server: embedded database in .data/, demo agent, no key needed
	@RUNS_ES_DATA_DIR="$${RUNS_ES_DATA_DIR:-.data}" exec $(BIN)/runs-es serve --host $(HOST) --port $(PORT) $(if $(CONFIG),--config $(CONFIG))

test: install ## Run the test suite against a real PostgreSQL, a process a core
	@$(BIN)/python -m pytest tests --numprocesses auto --maxprocesses 4 --dist loadfile

browser: $(VENV)/.browser ## Run the tests that need a Chromium; as root apt installs one
	@command -v "$${CHROMIUM:-chromium}" >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } || { echo "install Chromium, or name one in CHROMIUM"; exit 1; }
	@$(BIN)/python -m pytest tests/browser -m browser

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

faults: install ## The long fault suite: kills, cuts, stalls, a full disk, seeded (SEED=100). ONLY="thousand_runs" for some
	@FAULTS_SEED=$(SEED) $(BIN)/python -m pytest -m faults tests $(if $(ONLY),-k "$(ONLY)")

pooler: install ## Streams and kills through PgBouncer (Debian: apt-get install pgbouncer)
	@$(BIN)/python -m pytest -m pooler tests/acceptance/test_pgbouncer.py

wheel: install ## Build through the sdist, install into an empty environment, start the server from there
	@$(BIN)/python -m tests.wheel

openapi: install ## Write api/openapi.json anew
	@$(BIN)/python -m runs_api.openapi

clean: ## Remove what was built; the data in .data/ stays
	@rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
