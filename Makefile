# make reproduce   execute the notebooks 00 to 05; what they draw goes to runs/<NAME>
# make test        what CI runs: notebooks and package agree, style, types, imports, all tests
# make lint        ruff: format, rules, lines of at most 100 characters; import-linter: the rooms
# make types       mypy on the exported package
# make coverage    which lines of the package pytest does not reach
# make bench       how fast it is: bench/README.md and bench/results/ (peers only where installed)
# make paper       the published run: needs DATA=folder with DEMO_G, BMX_G and SPX_G; about two hours
#                  on two cores, a GPU trains in minutes; rewrites figures/, bench/results, weights,
#                  and the tables and numbers of READMEs and cards. Stopped, it goes on when given
#                  again. START=03_cldm begins there, DEVICE=cpu or cuda, RUN_DIR=folder works there,
#                  WAVEFORMS=folder judges ATS waveforms too; recorded loops are found beside DATA

PYTHON  ?= $(shell command -v python3.11 || command -v python3)
VENV    := .venv
BIN     := $(VENV)/bin
PROFILE ?= default
NAME    ?= $(PROFILE)
SEED    ?= 0
DATA    ?=
DEVICE  ?= auto
START   ?= 00_data
RUN_DIR ?= .
WAVEFORMS ?=

.PHONY: reproduce paper test exported lint types notebooks pytest coverage bench install clean

reproduce: install
	$(BIN)/spiro_run all --profile $(PROFILE) --name $(NAME) -p seed $(SEED) $(if $(DATA),--data "$(DATA)")

paper: install
	$(BIN)/python -c "from spiro_diffusion.apps.publish import main; raise SystemExit(main())" --data "$(DATA)" \
		--device $(DEVICE) --start $(START) --run-dir "$(RUN_DIR)" --waveforms "$(WAVEFORMS)"

# the notebooks' tests and pytest run side by side, each on one core
test: install exported lint types
	OMP_NUM_THREADS=1 $(MAKE) -j2 notebooks pytest

exported: install
	git rev-parse --is-inside-work-tree > /dev/null
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	git diff --exit-code -- nbs spiro_diffusion

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy spiro_diffusion

notebooks: install
	$(BIN)/nbdev_test --n_workers 1

pytest: install
	$(BIN)/python -m pytest -q tests

coverage: install
	COVERAGE_FILE=$(CURDIR)/.coverage $(BIN)/python -m pytest -q --cov=spiro_diffusion --cov-report=term-missing:skip-covered tests

bench: install
	$(BIN)/python bench/prepare.py
	$(BIN)/python bench/samplers.py
	$(BIN)/python bench/single.py
	$(BIN)/python bench/training.py
	$(BIN)/python bench/cohort_growth.py
	-$(BIN)/python bench/peers.py
	-$(BIN)/python bench/gpu.py
	$(BIN)/python bench/table.py

install: $(VENV)/installed

$(VENV)/installed: setup.py settings.ini constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) data/processed data/simulated checkpoints runs
