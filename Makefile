# `make help` lists the targets: a phrase after ## next to a target is its line there.

PYTHON ?= python3
N ?= 3
RUN ?= runs/default
SEED ?= 0
fuzz: N := 5000
VENV := .venv
BIN := $(VENV)/bin
# Another pyproject.toml or constraints.txt gives another stamp, so that an unchanged one costs nothing.
INSTALLED := $(VENV)/installed-$(shell cat pyproject.toml constraints.txt | cksum | tr -s ' ' -)

.PHONY: round help setup test test-fast lint format types options bench faults chaos fuzz tiny-weights
.DEFAULT_GOAL := round

round: setup ## [N=3] [RUN=runs/default]  set up, run N rounds, print where the report and the shards are (the default)
	$(BIN)/stseg-pipeline round --n $(N) --run "$(RUN)"

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED) ## only make .venv and install into it

$(INSTALLED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/installed-*
	@touch $@

test: lint types ## set up, then every check: lint, types, all tests
	$(BIN)/python -m pytest

test-fast: setup ## the tests that are neither slow nor need a Ray or an S3 server: under 90 s on two cores
	$(BIN)/python -m pytest -m "not slow and not ray and not s3"

lint: setup ## ruff: rules and format, changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## ruff: write the format, fix what it can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: setup ## mypy, strict
	$(BIN)/mypy

options: setup ## write tests/options.txt and docs/settings.md anew after a change of commands, options or settings
	PYTHONPATH=. $(BIN)/python tests/test_options.py
	PYTHONPATH=.:tests/support $(BIN)/python tests/test_settings_page.py

bench: setup ## speed and memory against the references (about fifteen minutes, a quiet machine)
	$(BIN)/python -m benchmarks

faults: POINTS = 300
faults: setup ## [POINTS=300] [SEED=0]  let so many file calls of a small run fail and run it again; as chaos
	$(BIN)/python -m benchmarks.faults --points $(POINTS) --seed $(SEED) --json benchmarks/faults.json

chaos: setup ## [POINTS=50] [SEED=0]  kill a small run at so many points and resume it; fails if one comes out otherwise
	$(BIN)/python -m benchmarks.chaos --points $(POINTS) --seed $(SEED) --json benchmarks/chaos.json

fuzz: N = 5000
fuzz: setup ## [N=5000] [SEED=0]  read so many hostile files; fails if one is not refused in order
	$(BIN)/python -m benchmarks.fuzz --n $(N) --seed $(SEED)

tiny-weights: setup ## train the shipped weights again (hours)
	$(BIN)/python -m models.tiny.train clip
	$(BIN)/python -m models.tiny.train sam
	$(BIN)/stseg-pipeline pretrain --set group.threads=1 --work runs/pretrain-dea --out models/weights/stage1_dea.safetensors
	$(BIN)/stseg-pipeline pretrain --set group.threads=1 --set model.dea=false --work runs/pretrain-baseline --out models/weights/stage1_baseline.safetensors
