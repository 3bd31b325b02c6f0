# make setup | make test | make demo. Each does its own set-up in .venv; Python >= 3.11 with pip is all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SPEECH ?= demo_speech
RUN ?= runs/demo
JUDGE ?= runs/whisper-tiny-en

.PHONY: setup test test-cluster test-distributed-1 test-distributed-2 test-units demo clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || (echo "venv failed; on Debian: apt-get install python3-venv" && exit 1)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Tests of many processes wait for each other a good deal: others fill the gaps.
test: setup
	@$(MAKE) --no-print-directory -j3 --output-sync=target test-cluster test-distributed-2 test-units test-distributed-1

test-cluster: setup
	$(BIN)/python -m pytest --durations=8 tests/cluster

# The half that follows the cluster's tests, and the longer one that starts with them.
test-distributed-1: setup
	$(BIN)/python -m pytest --durations=8 tests/distributed --ignore-glob='*/test_[!a-m]*'

test-distributed-2: setup
	$(BIN)/python -m pytest --durations=12 tests/distributed --ignore-glob='*/test_[a-m]*'

test-units: setup
	nice -n 10 $(BIN)/python -m pytest --durations=12 tests/unit

demo: setup
	$(BIN)/python tools/make_judge.py --out $(JUDGE)
	$(BIN)/python tools/pipeline.py --config recipes/demo.yaml --source $(SPEECH) --out $(RUN) --judge whisper:$(JUDGE)

clean:
	rm -rf build runs/demo .pytest_cache .mypy_cache .ruff_cache
