# Thin over bootstrap.py, which needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
ARGS ?=
JOBS := setup demo test check fix serve bench lock

.DEFAULT_GOAL := help
.PHONY: help $(JOBS)

help:
	@$(PYTHON) bootstrap.py --help

$(JOBS):
	@$(PYTHON) bootstrap.py $@ $(ARGS)
