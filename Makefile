# `make demo` and `make test` need Python 3.10 or newer and a package index, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Wheels to prefer over downloads, for offline machines. A Detectron2 wheel here is used as it is.
WHEELHOUSE ?= $(HOME)/.cache/segloc/wheelhouse
# Set to 0 to go without Detectron2.
DETECTRON2 ?= 1

export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
# Two threads that spin while they wait slow each other down many times over when the cores are shared.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help demo test faults lint detectron2 lock locked clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole chain on simulated scans, ending with runs/demo/report.html"
	@echo "make test    all tests that need no GPU, no data set and no network"
	@echo "make faults  the long form of the counted faults (hours), and their page"
	@echo "make lint    ruff and mypy"
	@echo "make detectron2    try again to install Detectron2"
	@echo "make locked  install the exact versions of requirements.lock into .venv-locked and test there"
	@echo "make lock    write requirements.lock from a fresh environment"
	@echo "make clean   remove the environment, the simulated data and the demo's runs"

demo: $(VENV)/.train.done $(VENV)/.detectron2.done
	@[ "$$(grep -c '^  [a-z]*grounds: data/simulated/' params.yaml)" = 2 ] || { \
	  echo "params.yaml names your own data; make demo is for the simulated scans. See docs/guide_pidray.md."; exit 2; }
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true
	dvc repro
	dvc repro detectron_configs/dvc.yaml
	@echo "$(CURDIR)/runs/demo/report.html"

test: $(VENV)/.dev.done $(VENV)/.detectron2.done
	python -m pytest

FAULTS := kill disk dirty fuzz hostile stops distributed long

faults: $(VENV)/.dev.done $(VENV)/.detectron2.done
	@for name in $(FAULTS); do python -m tests.faults.$$name || failed=1; done; python -m tests.faults.page; exit $${failed:-0}

lint: $(VENV)/.dev.done
	ruff check .
	ruff format --check .
	mypy pipeline segloc

# Exact versions. TESTS chooses the tests: make locked TESTS=tests/segloc/settings
LOCKED := .venv-locked
LOCKED_EXTRAS := train,s3,https,ray,dev
TESTS ?=

locked:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "requirements.lock is for Python 3.11; name it with PYTHON=..."; exit 2; }
	rm -rf $(LOCKED)
	$(PYTHON) -m venv $(LOCKED)
	$(LOCKED)/bin/python -m pip install --quiet --requirement requirements.lock
	$(LOCKED)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(LOCKED)/bin/python -m pip check
	PATH="$(CURDIR)/$(LOCKED)/bin:$$PATH" $(LOCKED)/bin/python -m pytest $(TESTS)

# Local version suffixes, such as +cu130, name an index that others may not have.
lock:
	rm -rf $(LOCKED)
	$(PYTHON) -m venv $(LOCKED)
	$(LOCKED)/bin/python -m pip install --quiet "setuptools<81" ".[$(LOCKED_EXTRAS)]"
	sed -n '/^#/p' requirements.lock > requirements.lock.new
	$(LOCKED)/bin/python -m pip freeze --exclude segloc --exclude pip --exclude wheel --all \
	  | sed -E 's/[+][^;]*$$//; s/^((nvidia|cuda|triton)[^;]*)$$/\1; sys_platform == "linux"/' >> requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) $(LOCKED) data/simulated data/manifest data/*.parquet data/*.png data/audit.json data/audit data/shards runs/demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; name it with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Detectron2's setup imports pkg_resources, which newer setuptools no longer has.
$(VENV)/.train.done: setup.cfg | $(BIN)/python
	python -m pip install --quiet --upgrade pip wheel "setuptools<81"
	python -m pip install --quiet --editable ".[train]"
	@touch $@

$(VENV)/.dev.done: setup.cfg $(VENV)/.train.done
	python -m pip install --quiet --editable ".[train,ray,s3,dev]"
	@touch $@

# Detectron2 is on no package index: take it from where it can be had, or go on without, and say so.
# `make detectron2` tries again.
detectron2: $(VENV)/.train.done
	@rm -f $(VENV)/.detectron2.done
	@$(MAKE) --no-print-directory $(VENV)/.detectron2.done

$(VENV)/.detectron2.done: setup.cfg $(VENV)/.train.done
	@DETECTRON2=$(DETECTRON2) WHEELHOUSE="$(WHEELHOUSE)" sh detectron_configs/install_detectron2.sh
	@[ "$(DETECTRON2)" = 0 ] || touch $@
