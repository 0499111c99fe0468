# `make run` and `make test` set up what they need, in .venv; a fresh machine has to bring Python 3.11 or newer and make.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help run demo video currency test soak servers lint types format bench clean

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | while IFS='	' read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

run: $(VENV)/.run ## run the shop: web API and workers on the embedded broker
	@$(PY) -m examples.shop

demo: $(VENV)/.run ## feed 1,000 orders through the shop and account for each; ARGS="--help" says more
	@$(PY) -m examples.shop.demo $(ARGS)

video: $(VENV)/.run ## run the video service: upload, encode in several sizes, watch
	@$(PY) -m examples.video $(ARGS)

currency: $(VENV)/.run ## run the currency service: quotes each minute, and a page with their history
	@$(PY) -m examples.currency $(ARGS)

test: servers ## run all the tests (but the soak) in several processes; ARGS="-k retry" picks some, in one
	@$(PY) -m pytest $(or $(ARGS),-n $(WORKERS) --dist worksteal)

soak: servers ## run the tests that take minutes
	@$(PY) -m pytest -m soak $(ARGS)

servers: $(VENV)/.dev ## install the servers that the tests run on, as far as they can be had
	@$(PY) -m tests.servers.install

lint: $(VENV)/.dev ## ruff, and who may import whom
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(VENV)/bin/lint-imports --no-logo

types: $(VENV)/.dev ## mypy and pyright
	@$(PY) -m mypy
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)

format: $(VENV)/.dev ## let ruff put the code in order
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

bench: $(VENV)/.dev ## carteiro, the bare client loops and the peers, side by side
	@$(PY) -m benchmarks $(ARGS)

clean: ## remove .venv and everything else that can be made again
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say what was installed from which pyproject.toml; `dev` holds all that `run` needs.
$(VENV)/.run: pyproject.toml | $(PY)
	@echo "setting up $(VENV) for the examples"
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[examples]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(PY)
	@echo "setting up $(VENV) for development"
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.run

$(PY):
	@command -v $(PYTHON) >/dev/null || { echo "carteiro needs Python 3.11 or newer, and there is no \`$(PYTHON)\` here: install one, or name it as in \`make $(MAKECMDGOALS) PYTHON=python3.12\`" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "carteiro needs Python 3.11 or newer, and \`$(PYTHON)\` is $$($(PYTHON) -V 2>&1): install a newer one, or name it as in \`make $(MAKECMDGOALS) PYTHON=python3.12\`" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "\`$(PYTHON)\` cannot make a virtual environment (no ensurepip): on Debian and Ubuntu \`apt-get install python3-venv\`, elsewhere your system's package for venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
