# Everything runs in .venv, which the first target to need it makes.
#   make start   a cluster in the foreground, data under ./shardb-data   (ARGS="--shards 4 ...")
#   make test    all tests                                              (ARGS="-k copy ...")
#   make soak    random statements with kill -9, beside PostgreSQL      (ARGS="--minutes 60 ...")
#   make crash   nodes that crash at many points, and disks that are full   (CRASH_SEEDS=100)
#   make sim     clusters in a simulated world, by seed     (SEED=7, SEEDS=1..2000, HOURS=2)
#   make sim-mutations   how soon the simulator notices that a rule is broken
#   make scenarios   writes the transcripts of the commit protocol anew; review what changed
#   make lint    ruff, mypy, import-linter
#   make asan    tests of shardb/_core: bad accesses, undefined behaviour (ARGS="-k copy ...")
#   make tsan    tests of shardb/_core: data races
#   make bench   the benchmarks; needs PostgreSQL's own programs        (ARGS="--scale 10 ...")

PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py $(wildcard shardb/_core/*.pyx shardb/_core/*.pxd shardb/_core/*.h)

.PHONY: start test crash soak sim sim-mutations scenarios lint asan tsan bench build format clean

start: build
	@exec $(BIN)/shardb start $(ARGS)

test: build
	@tools/require test
	$(BIN)/python -m pytest $(ARGS)

soak: build
	@tools/require test
	$(BIN)/python -m tests.soak $(ARGS)

crash: build
	CRASH_SEEDS=$(or $(CRASH_SEEDS),20) $(BIN)/python -m pytest -s \
	  tests/unit/test_engine_crash.py tests/unit/test_engine_full.py $(ARGS)

sim: build
	$(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(if $(HOURS),--hours $(HOURS)) $(ARGS)

sim-mutations: build
	$(BIN)/python -m tests.sim --mutations $(ARGS)

scenarios: build
	REWRITE_SCENARIOS=1 $(BIN)/python -m pytest tests/scenarios $(ARGS)

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy
	$(BIN)/lint-imports

asan: .venv/installed
	@tools/require sanitize
	tools/sanitize address $(ARGS)

tsan: .venv/installed
	@tools/require sanitize
	tools/sanitize thread $(ARGS)

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: build
	@tools/require test
	$(BIN)/python -m bench.oltp $(ARGS)
	$(BIN)/python -m bench.txn
	$(BIN)/python -m bench.copy $(ARGS)
	$(BIN)/python -m bench.tpch $(ARGS)

build: .venv/built

.venv/made:
	@PYTHON=$(PYTHON) tools/require build
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "shardb needs Python 3.11 or newer: make PYTHON=python3.x" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip 'setuptools>=77' 'cython>=3.1,<4'
	@touch $@

.venv/installed: .venv/made pyproject.toml
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[dev]'
	@touch $@

.venv/built: .venv/installed $(SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

clean:
	rm -rf .venv build *.egg-info shardb/_core/*.so shardb/_core/*.c
