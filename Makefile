# `make demo`, `make test` and `make docs`: each makes .venv and installs into it first, if requirements.lock or
# pyproject.toml changed.

PYTHON ?= python3
BIN = .venv/bin
STAMP = .venv/installed
DATA ?=

.PHONY: demo test types units docs

demo: $(STAMP)
	$(BIN)/ssamba demo $(if $(DATA),--data "$(DATA)")

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory -j 2 types units  # the tests leave a core idle now and then

types:
	$(BIN)/mypy
	$(BIN)/mypy benchmarks  # apart: data_prep has files of the same names

units:
	$(BIN)/pytest -q -n auto --dist worksteal

docs: .venv/docs-installed
	$(BIN)/mkdocs build --strict --quiet

# Beside the lock, which is what the tests need, and within its versions.
.venv/docs-installed: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c requirements.lock -e ".[docs]"
	@touch $@

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
