# `make chat` and `make test` set up what they need; `make help` lists the rest.

SHELL := /bin/bash
VENV ?= .venv
STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished
WORKERS ?= 2

# The newest suitable Python that really runs: a name on PATH may be a shim without a version.
PYTHON ?= $(shell for candidate in python3.12 python3.11 python3; do \
	$$candidate -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
	2>/dev/null && echo $$candidate && break; done)

# The message reaches the shell through the environment, never as source text; $(value) keeps
# a dollar sign in it from being expanded by make.
override MSG := $(value MSG)
export MSG

.PHONY: help venv chat test lint soak dist docs tiny bench clean

help:
	@echo 'make chat            answer 你好 with the bundled model, then wait for more'
	@echo 'make chat MSG="..."  answer once'
	@echo 'make test            every check and test'
	@echo 'make lint            the checks alone'
	@echo 'make soak            what is too long for that: load, leaks, kills, fuzzing, installation'
	@echo 'make soak SHORT=1    the same in a few minutes'
	@echo 'make dist            build the wheel and the source distribution'
	@echo 'make docs            build the documentation into site/'
	@echo 'make tiny            train the bundled model again (ten minutes)'
	@echo 'make bench           how to run the benchmarks'
	@echo 'make clean           remove caches and build output; the environment stays'

venv: $(STAMP)

# An environment whose set-up was cut off cannot be trusted, so the next run empties it and
# starts again. The mark is put first and becomes the stamp last, in one rename; it survives
# the emptying, which may be cut off too.
$(STAMP): pyproject.toml glm3sdk/_version.py
	@test -n "$(PYTHON)" || { echo 'glm3sdk needs Python 3.11 or 3.12 (make PYTHON=/path/to/python3.12)' >&2; exit 1; }
	@test ! -e $(UNFINISHED) || find $(VENV) -mindepth 1 ! -path $(UNFINISHED) -delete
	@mkdir -p $(VENV) && touch $(UNFINISHED)
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV); the first time downloads about 1 GB ...' >&2
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,mindspore]'
	@mv $(UNFINISHED) $@

chat: $(STAMP)
	@if [ -n "$$MSG" ]; then \
		exec $(VENV)/bin/glm3 chat -- "$$MSG"; \
	else \
		exec $(VENV)/bin/glm3 chat 你好 --interactive; \
	fi

# A file's tests share graphs and servers, so they stay in one of the two processes.
test: lint
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(STAMP)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/deptry glm3sdk training

soak: $(STAMP)
	$(VENV)/bin/python -m pytest soak $(if $(SHORT),--short) --durations=5

dist: $(STAMP)
	rm -rf dist
	$(VENV)/bin/python -m build

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

tiny: $(STAMP)
	$(VENV)/bin/python training/tiny/build.py

bench:
	@echo 'See benchmarks/README.md: the peers need packages of their own.'

clean:
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find glm3sdk tests soak training benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
