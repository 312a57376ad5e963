# Everything a newcomer needs: make demo, make test. Nothing here needs root or a server.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.qtrunk-setup
SOURCES := pyproject.toml CMakeLists.txt $(wildcard src/kernels/*)

.PHONY: setup demo test check validate reconciliation soundness bench profile format clean

setup: $(STAMP)

$(STAMP): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qtrunk needs CPython 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

demo: setup
	@$(BIN)/qtrunk up beijing-xiongan

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What the simulated light measures beside published links, what sees each attack, and what Cascade says: writes docs/
# (about ten minutes).
validate: setup
	$(BIN)/python tools/validation_report.py
	$(BIN)/python tools/attack_report.py
	$(BIN)/python tools/cascade_report.py

# How often each bound behind a key's length is wrong: writes docs/soundness.md (about four minutes).
soundness: setup
	$(BIN)/python tools/soundness_study.py

# Frame errors and what reconciliation says: writes docs/reconciliation.md (some minutes).
reconciliation: setup
	$(BIN)/python tools/reconciliation_report.py

# Figures of speed beside rivals from their own packages: writes docs/benchmarks.md.
bench: setup
	$(BIN)/qtrunk bench --write docs/benchmarks.md

# Where the time of distillation goes: writes docs/profile.md.
profile: setup
	$(BIN)/python tools/distillation_profile.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build
