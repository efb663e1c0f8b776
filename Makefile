# make book [PROFILE=paper] [DATA=FOLDER_WITH_RELEASES] [SEED=0] [SEEDS=1] [CORES=n] [GPUS=n] [SNAKEFLAGS="--executor slurm --jobs 8"]
# Needed beforehand: Python 3.11 or newer, make, git. Everything else goes into .venv, at pinned versions.

SHELL := bash
.PHONY: help book test lint format bench clean

PYTHON ?= python3
PROFILE ?= sample
DATA ?=
SEED ?= 0
SEEDS ?= 1
CORES ?= all
GPUS ?= 1
SNAKEFLAGS ?=
PYTESTFLAGS ?=

unexport PYTHONPATH PYTHONHOME JUPYTER_PATH PYTHONDONTWRITEBYTECODE
export JUPYTER_PREFER_ENV_PATH := 1
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALLED := .venv/.installed
CHECK_PYTHON := import sys; (3, 11) <= sys.version_info < (3, 14) or \
  sys.exit('Python 3.11, 3.12 or 3.13 is needed; name another one: make PYTHON=python3.12')
SHOW_PACKAGES := awk '/^ *(Downloading|Using cached|Building|Installing)/ && !/metadata/ { print substr($$0, 1, 110); fflush() }'

help:
	@echo "make book     environment, samples, training, evaluation, book; prints where the book is"
	@echo "              PROFILE=paper DATA=FOLDER trains on the releases in FOLDER/<data set>;"
	@echo "              SEEDS=3 is how many seeds the comparison and the ablation have"
	@echo "make test     the tests            make lint     check code and notebooks"
	@echo "make bench    how fast it runs     make format   format code and notebooks"
	@echo "make clean    remove what 'make book' made on sample data, but not .venv"

book: $(INSTALLED)
	@snakemake --cores $(CORES) --resources gpu=$(GPUS) --rerun-triggers params --rerun-incomplete --nolock \
	  --prioritize book/executed/comparison.ipynb book/executed/ablation.ipynb \
	  --quiet rules progress reason host --config profile=$(PROFILE) seed=$(SEED) seeds=$(SEEDS) data="$(DATA)" $(SNAKEFLAGS)
	@python -c "import pathlib; print('\nThe book:', pathlib.Path('_build/html/index.html').resolve().as_uri())"

test: $(INSTALLED)
	@python book/vendor.py || echo "the book's JavaScript could not be fetched: tests in a browser are skipped"
	@OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --durations=10 $(PYTESTFLAGS)

lint: $(INSTALLED)
	@ruff check . && ruff format --check .

format: $(INSTALLED)
	@ruff check --fix . && ruff format .

bench: $(INSTALLED)
	@python benchmarks/network.py

clean:
	rm -rf _build book/_generated book/executed book/vendor data/prepared/samples data/samples \
	  data/slides/{BACH2018,InHouse} results/*/*-sample-* .snakemake

$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c "$(CHECK_PYTHON)"
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv; this is done once and takes a few minutes."
	@set -o pipefail; .venv/bin/python -m pip install --no-compile -c requirements.lock -e ".[all]" | $(SHOW_PACKAGES)
	@touch $@
