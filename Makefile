# Everything a newcomer needs: make demo, make test. Nothing here needs root or a server.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.qtrunk-setup
SOURCES := pyproject.toml CMakeLists.txt $(wildcard src/kernels/*) $(wildcard src/front/*) $(wildcard src/load/*)

.PHONY: day scale soak setup demo test check validate diagnosis reconciliation soundness bench profile torture powerloss reliability format clean fuzz-api
KILLS ?= 2000
SEEDS ?= 1000
STATES ?= 1000

setup: $(STAMP)

$(STAMP): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qtrunk needs CPython 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

demo: setup
	@$(BIN)/qtrunk up beijing-xiongan

# Files that take long first: two workers end together. Labs run one after the other: what they wait for is measured in
# seconds of a machine that has nothing else to do.
test: setup
	$(BIN)/python -m pytest tests/sim tests/tools tests/plan tests --ignore tests/lab --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest tests/lab

# The OpenAPI files against a real server for five minutes each, never the same twice.
fuzz-api: setup
	$(BIN)/python -m pytest -s tests/api/test_fuzz.py --fuzz-seconds 300

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

# What a national network costs by its size: writes docs/scale.md (some minutes).
scale: setup
	$(BIN)/python tools/scale_study.py

# What the ends of a link make of attacks and faults: writes docs/diagnosis.md (about four minutes).
diagnosis: setup
	$(BIN)/python tools/diagnosis_report.py --seeds 4

# A day of growth, faults and maintenance with real processes, and what each tenant saw: writes docs/day.md (half an hour, 14 GB).
day: setup
	$(BIN)/python tools/scripted_day.py --write
	$(BIN)/python tools/simulated_day.py two-rings --write

# How often each bound behind a key's length is wrong: writes docs/soundness.md (about four minutes).
soundness: setup
	$(BIN)/python tools/soundness_study.py

# Frame errors and what reconciliation says: writes docs/reconciliation.md (some minutes).
reconciliation: setup
	$(BIN)/python tools/reconciliation_report.py

# Figures of speed beside rivals from their own packages: writes docs/benchmarks.md, -supply.md and -network.md.
bench: setup
	$(BIN)/qtrunk bench --only '[!sn]*' --write docs/benchmarks.md
	$(BIN)/qtrunk bench --only 'network.*' --write docs/benchmarks-network.md
	$(BIN)/qtrunk bench --only 'supply.*' --write docs/benchmarks-supply.md
	$(BIN)/python tools/key_api_bench.py

# Where the time of distillation goes: writes docs/profile.md.
profile: setup
	$(BIN)/python tools/distillation_profile.py

# Kill -9 at every effect and at random moments; every disk that a loss of power may leave; what both found, and the tests
# behind each promise: writes docs/reliability.md (about ten minutes).
torture: setup
	$(BIN)/python tools/torture.py --kills $(KILLS)

# Simulated networks, each under a seed of its own: faults of all kinds, every invariant at every step.
soak: setup
	$(BIN)/python -m qtrunk.sim.soak --seeds $(SEEDS)
	$(BIN)/python -m qtrunk.sim.soak --seeds $(SEEDS) --first 1000000

powerloss: setup
	$(BIN)/python tools/powerloss.py --states $(STATES)

reliability: setup
	$(BIN)/python tools/reliability_report.py --kills $(KILLS) --states $(STATES)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build
