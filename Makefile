# Each target does all of its own set-up; a fresh machine needs Python 3.11 and nothing else.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: venv sweep test storm lint bench clean

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable . --group test --group checking
	touch $@

sweep: venv
	$(BIN)/python tune_configs/tune_cpql.py --preset quick --out runs
	$(BIN)/python results_analysis/heatmap.py runs/cpql-quick
	$(BIN)/python results_analysis/report.py runs/cpql-quick

test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

storm: venv  # kills, freezes and damage by the hundred: an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m storm
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.storms.driver
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.storms.workers

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: venv
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench.py

clean:
	rm -rf .venv
