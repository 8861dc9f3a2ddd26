# Everything here installs what it lacks first; it asks for sudo only when a package is missing.
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
JOBS ?= 2
SOAK ?= 3600
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick check crash bench soak clean

help:	## print this list; a target not listed is not supported
	@sed -n 's/^\([a-z]*\):[^#]*## /\1	/p' Makefile | expand -t 8

setup:	## install what every target needs: Debian packages, and Python ones into .venv
	@.ci/install test

demo:	## three disks: snapshots, a failure that changes nothing, a kill and its recovery
	@.ci/install demo
	@$(PYTHON) -m imgtool.testing.demo

test: quick crash	## what CI runs: `make quick`, then `make crash`

quick: setup	## the linters and every test but the long crash matrices
	@$(PYTEST) -m "not long and not soak" -n $(JOBS) --dist loadgroup $(ARGS)

check: setup	## the linters alone: ruff check, ruff format, mypy --strict
	@$(PYTEST) tests/test_linters.py $(ARGS)

crash: setup	## the long crash matrices: every system call, every flush, hundreds of kills
	@$(PYTEST) -m "long and not soak" -n $(JOBS) --dist loadgroup $(ARGS)

bench: setup	## measure against virsh and plain qemu-img, side by side
	@$(PYTHON) -m tests.bench $(ARGS)

soak: setup	## 50,000 random steps, then every test with new seeds for SOAK seconds (3600)
	@.ci/soak $(SOAK) -n $(JOBS) --dist loadgroup $(ARGS)

clean:	## remove .venv and all that the tools left here; Debian packages stay
	@rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	@find imgtool tests -name __pycache__ -prune -exec rm -rf {} +
