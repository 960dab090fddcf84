# `make demo` runs the main job, `make test` every check, `make setup` prepares .venv; see README.md.
# Everything stays inside this folder but pip's own cache.

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
DEMO ?= demo

export TMPDIR := $(CURDIR)/.cache/tmp
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export TORCHINDUCTOR_CACHE_DIR := $(CURDIR)/.cache/inductor
# Compiled once, in a folder of its own: many tests start a Python, and some machines forbid bytecode beside the sources.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/bytecode
export GX_ANALYTICS_ENABLED := false
export PATH := $(BIN):$(PATH)

.PHONY: setup demo quick test fuzz check azurite clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt loaders/_copy_slices.c
	@mkdir -p $(TMPDIR)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "the pinned development environment needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f loaders/_copy_slices*.so  # else one that cannot be compiled any more stays
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	longbatch demo $(DEMO) --overwrite

check: setup
	ruff check .
	ruff format --check .
	mypy
	MYPYPATH=src:tests mypy --explicit-package-bases tests

# The inner loop: tests without the markers `spark` and `slow`, at most 90 s on two cores.
quick: setup
	pytest -n 2 -m 'not spark and not slow'

test: check
	pytest -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=90

# The property tests draw the same cases each time; this draws new ones.
fuzz: setup
	pytest -n 2 --hypothesis-profile=fuzz

# Optional, needs npm: a server of Azure's protocol. Tests and benchmarks that need it are skipped without it.
azurite:
	npm install --no-audit --no-fund --ignore-scripts --prefix .cache/azurite azurite@3.37.0

# Each version of Spark and the oldest libraries, in environments of their own; writes the table of docs/cluster.md.
# One row: make matrix ROWS='--only 3.5'
matrix: setup
	longbatch bench matrix $(ROWS)

clean:
	rm -rf $(VENV) .cache demo loaders/_copy_slices*.so
