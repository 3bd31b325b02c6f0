# make setup | make test | make demo. Each does its own set-up in .venv; Python >= 3.11 with pip is all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SPEECH ?= demo_speech
RUN ?= runs/demo

.PHONY: setup test test-processes test-units demo clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || (echo "venv failed; on Debian: apt-get install python3-venv" && exit 1)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Tests of many processes wait for each other a good deal: those of one process fill the gaps.
test: setup
	@$(MAKE) --no-print-directory -j2 --output-sync=target test-processes test-units

test-processes: setup
	$(BIN)/python -m pytest tests/cluster tests/distributed

test-units: setup
	nice -n 10 $(BIN)/python -m pytest tests/unit

demo: setup
	$(BIN)/python tools/pipeline.py --config recipes/demo.yaml --source $(SPEECH) --out $(RUN)

clean:
	rm -rf build runs/demo .pytest_cache .mypy_cache .ruff_cache
