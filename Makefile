# Everything Cloche's developers and users run. Each target sets up what it needs.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
# Test processes: the tests wait for servers more than they compute. JOBS=0 runs them in one.
JOBS   ?= 4
# The inner loop: no worker, no RabbitMQ, no browser.
QUICK  := tests/unit tests/integration/broker tests/integration/process \
	$(addprefix tests/integration/,test_cli_config.py test_cli_dlq.py logs_read/test_read.py) \
	$(addprefix tests/integration/transport/test_,publish.py publish_quick.py queues.py urls.py)

.PHONY: help setup up test quick test-transport chaos soak check bench peer-suite differential clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## Virtual environment in .venv with Cloche and its development tools

$(VENV)/.ready: pyproject.toml constraints.txt tools/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/setup.sh
	@touch $@

up: setup ## Run everything: http://localhost:8000 and http://localhost:8001
	@exec $(BIN)/cloche up $(ARGS)

test: setup ## All tests but the long ones (installs Chromium and PostgreSQL with apt when root)
	@sh tools/test-servers.sh
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

quick: setup ## The quickest tests, in a minute: for while one works on something
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile $(QUICK) $(ARGS)

test-transport: setup ## All tests of transport and asyncio pool: servers, TLS, Sentinel, losses
	@sh tools/test-servers.sh
	@$(BIN)/python -m pytest -m "long or not long" tests/integration/transport tests/integration/aio_pool $(ARGS)

chaos: setup ## The fault matrix with 2,000 numbered tasks a row (make test runs a short form)
	@CHAOS_TASKS=$${CHAOS_TASKS:-2000} $(BIN)/python -m pytest -m "long or not long" tests/chaos $(ARGS)

soak: setup ## Numbered tasks on all pools under random faults (MINUTES=30 TASKS=1000000 ARGS="--seed 1")
	@$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),30) --tasks $(or $(TASKS),1000000) $(ARGS)

check: setup ## Lint, format, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/unit/test_layers.py

bench: setup ## Compare with stock Celery and peers (ARGS="--help" for the choices)
	@$(BIN)/python -m bench $(ARGS)

peer-suite: setup ## Celery's and its tools' own tests, on stock URLs and on ours (SUITE=kombu POOL=threads ARGS="-k canvas")
	@$(BIN)/python -m tests.peer $(if $(SUITE),--suite $(SUITE)) $(if $(POOL),--pool $(POOL)) $(ARGS)

differential: setup ## Random programs on stock Celery and on ours (N=2000 POOL=threads SEED=1)
	@$(BIN)/python -m tests.differential $(if $(N),-n $(N)) $(if $(POOL),--pool $(POOL)) $(if $(SEED),--seed $(SEED)) $(ARGS)

clean: ## Remove the virtual environments and caches (not the run directory .cloche)
	rm -rf $(VENV) .bench-venv .peer-suite .mypy_cache .pytest_cache .ruff_cache .hypothesis
