# make round [N=3] [RUN=runs/default]   set up, run N rounds, say where the report and the shards lie
# make test                             set up, then every check: ruff, mypy, pytest
# make setup                            only make .venv and install into it
# make bench                            speed and memory against the references (about fifteen minutes, a quiet machine)
# make chaos [POINTS=50] [SEED=0]       kill a small run at so many points and resume it; fails if one comes out otherwise
# make faults [POINTS=300] [SEED=0]      let so many file calls of a small run fail and run it again; as above
# make tiny-weights                     train the shipped weights again (hours)

PYTHON ?= python3
N ?= 3
RUN ?= runs/default
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
# Another pyproject.toml or constraints.txt gives another stamp, so that an unchanged one costs nothing.
INSTALLED := $(VENV)/installed-$(shell cat pyproject.toml constraints.txt | cksum | tr -s ' ' -)

.PHONY: round test setup bench chaos faults tiny-weights
.DEFAULT_GOAL := round

round: setup
	$(BIN)/stseg-pipeline round --n $(N) --run "$(RUN)"

setup: $(INSTALLED)

$(INSTALLED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/installed-*
	@touch $@

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

bench: setup
	$(BIN)/python -m benchmarks

faults: POINTS ?= 300
faults: setup
	$(BIN)/python -m benchmarks.faults --points $(POINTS) --seed $(SEED) --json benchmarks/faults.json

chaos: POINTS ?= 50
chaos: setup
	$(BIN)/python -m benchmarks.chaos --points $(POINTS) --seed $(SEED) --json benchmarks/chaos.json

tiny-weights: setup
	$(BIN)/python -m models.tiny.train clip
	$(BIN)/python -m models.tiny.train sam
	$(BIN)/stseg-pipeline pretrain --set group.threads=1 --work runs/pretrain-dea --out models/weights/stage1_dea.safetensors
	$(BIN)/stseg-pipeline pretrain --set group.threads=1 --set model.dea=false --work runs/pretrain-baseline --out models/weights/stage1_baseline.safetensors
