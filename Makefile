# `make demo` and `make test` set everything up; nothing else needs to be run first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
MINUTES ?= 9
DATA_DIR ?= data
MORE ?=
SHARED := -n 2 --dist worksteal --durations=10  # two tests in parallel, one thread each (tests/conftest.py)

.PHONY: help setup demo test test-slow test-slurm test-browser faults gpu gpu-rehearsal lint format docs bench revision clean

help:
	@echo "make demo       set up, then train CE and ISDA on scikit-learn's digits, three seeds each, and print the table"
	@echo "make test       set up, then lint, types, import contracts and the tests that are quick"
	@echo "make test-slow  set up, then the tests that take longer"
	@echo "make test-slurm set up, then the tests on a SLURM cluster of this host (root on Debian)"
	@echo "make test-browser set up, then the tests of the report's page in Chromium (apt-get install chromium)"
	@echo "make faults     kill, stop and damage runs in every way of results/faults*.md, an hour (root on Debian)"
	@echo "make gpu MINUTES=9   prove and measure everything on one GPU, then fill cells of Table 2 (RUN=python3: your own environment)"
	@echo "make gpu-rehearsal   the same code, smaller, on the CPU, two minutes"
	@echo "make bench      the speed benchmarks of this machine, against their bars, an hour"
	@echo "make docs       the documentation as a site, build/site/index.html; a broken link is an error"
	@echo "make format     format the code"
	@echo "make revision   record the git revision for a copy without .git; before copying, sets nothing up"

setup: $(STAMP)

# requirements.lock has exact versions of all packages; the project itself is installed from this folder in editable mode.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: $(STAMP)
	$(RUN) scripts/sweep.py table=demo
	$(RUN) scripts/tables.py table=demo

test: $(STAMP) lint
	$(RUN) -m pytest -q $(SHARED) -m "not slow and not slurm and not browser"

test-slow: $(STAMP)
	$(RUN) -m pytest -q $(SHARED) -m slow

test-slurm: $(STAMP)
	$(RUN) -m pytest -q -m slurm -rs

test-browser: $(STAMP)
	$(RUN) -m pytest -q -m browser -rs --durations=5

faults: $(STAMP)
	$(RUN) tests/faults/faults.py output=results/faults.md
	$(RUN) tests/faults/faults_of_several.py output=results/faults_of_several.md
	$(RUN) tests/faults/faults_of_slurm.py output=results/faults_of_slurm.md

# Does not set up the environment, because on a borrowed GPU it often belongs to somebody else.
gpu:
	PYTHONPATH=$(CURDIR):$$PYTHONPATH $(RUN) benchmarks/gpu/gpu.py minutes=$(MINUTES) data_dir=$(DATA_DIR) $(MORE)

gpu-rehearsal: $(STAMP)
	$(RUN) benchmarks/gpu/gpu.py rehearse=true output=runs/gpu-rehearsal

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(STAMP)
	mkdir -p build/docs
	for name in README.md CONTRIBUTING.md CHANGELOG.md CITATION.cff LICENSE train.py docs examples isda_repro results; do ln -sfn ../../$$name build/docs/$$name; done
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

BENCHMARKS = loss dense soft_targets prior_and_summary overhead input_pipeline data_wait communication packing network_speed \
	training_rate checkpoints table_speed gan/generators gan/inversions
bench: $(STAMP)
	@missed=0; for name in $(BENCHMARKS); do \
	  $(RUN) benchmarks/$$name.py || { status=$$?; [ $$status -ne 130 ] || exit 130; missed=1; }; \
	done; exit $$missed

revision:
	$(PYTHON) -m isda_repro.revision

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
