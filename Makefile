# make reproduce   re-execute the notebooks 00 to 05; the paper's figures appear in figures/
# make test        what CI runs: notebooks and package agree, notebook tests, pytest
# make lint        ruff
# make types       mypy on the exported package
# make coverage    which lines of the package pytest does not reach
# make bench     how fast it is: bench/README.md and bench/results/ (peers only where they are installed, see there)
# make paper       the same as reproduce at profile paper (a GPU helps)

PYTHON  ?= $(shell command -v python3.11 || command -v python3)
VENV    := .venv
BIN     := $(VENV)/bin
PROFILE ?= default
NAME    ?= $(PROFILE)
SEED    ?= 0
DATA    ?=

.PHONY: reproduce paper test lint types coverage bench install clean

reproduce: install
	$(BIN)/spiro_run all --profile $(PROFILE) --name $(NAME) -p seed $(SEED) $(if $(DATA),--data "$(DATA)")

paper:
	$(MAKE) reproduce PROFILE=paper

test: install
	git rev-parse --is-inside-work-tree > /dev/null
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	git diff --exit-code
	$(BIN)/nbdev_test --n_workers 1
	$(BIN)/python -m pytest -q tests
	$(BIN)/ruff check .
	$(BIN)/mypy spiro_diffusion

lint: install
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy spiro_diffusion

coverage: install
	COVERAGE_FILE=$(CURDIR)/.coverage $(BIN)/python -m pytest -q --cov=spiro_diffusion --cov-report=term-missing:skip-covered tests

bench: install
	$(BIN)/python bench/prepare.py
	$(BIN)/python bench/samplers.py
	$(BIN)/python bench/single.py
	$(BIN)/python bench/cohort_growth.py
	-$(BIN)/python bench/peers.py
	$(BIN)/python bench/table.py

install: $(VENV)/installed

$(VENV)/installed: setup.py settings.ini constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) data/processed data/simulated data/generated checkpoints runs
