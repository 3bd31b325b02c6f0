# make setup | make test | make quick | make lint | make demo. Each does its own set-up in .venv; Python >= 3.11 with pip is all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SPEECH ?= demo_speech
RUN ?= runs/demo
JUDGE ?= runs/whisper-tiny-en

.PHONY: setup test test-processes test-units quick lint demo clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || (echo "venv failed; on Debian: apt-get install python3-venv" && exit 1)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --requirement requirements.lock
	-$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib # pip would take one core for its 20,000 files
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Two workers each, which take whole files. Where one dies the run ends: with a new one in its place pytest-xdist 3.8 waits for ever.
# Tests of many processes wait for each other a good deal: units and lint fill the gaps.
PYTEST := $(BIN)/python -m pytest -n 2 --no-loadscope-reorder --max-worker-restart 0

test: setup
	@$(MAKE) --no-print-directory -j3 --output-sync=target test-processes test-units lint

test-processes: setup
	$(PYTEST) --durations=20 tests/cluster tests/distributed

test-units: setup
	nice -n 10 $(PYTEST) --durations=20 tests/unit

# Two minutes: the units that take no seconds.
quick: setup
	$(PYTEST) --durations=8 -m 'not slow' tests/unit

# Style, types, and the direction of imports ([tool.importlinter] of pyproject.toml).
lint: setup
	nice -n 10 $(BIN)/ruff check .
	nice -n 10 $(BIN)/ruff format --check .
	nice -n 10 $(BIN)/mypy
	nice -n 10 $(BIN)/lint-imports --no-cache --no-logo

demo: setup
	$(BIN)/python tools/make_judge.py --out $(JUDGE)
	$(BIN)/python tools/pipeline.py --config recipes/demo.yaml --source $(SPEECH) --out $(RUN) --judge whisper:$(JUDGE)

clean:
	rm -rf build runs/demo .pytest_cache .mypy_cache .ruff_cache
