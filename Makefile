# make demo    the whole road on this machine, from documents to a served chat model
# make test    every test
# make lint    ruff, mypy, the layer contracts, the cluster file
# make judge   the service before clients and testers that others wrote, and ten minutes of a thousand connections
# make bench-model  a training step against transformers: speed and memory
# PYTHON names the Python (3.11 or newer) that .venv is made with.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

JUDGES := .venv-judge

.PHONY: demo smoke test lint judge bench-model format venv clean

demo: $(READY)
	$(BIN)/python jobs/pipeline.py --recipe demo

smoke: $(READY)
	$(BIN)/python jobs/pipeline.py --recipe smoke

test: $(READY)
	$(BIN)/python -m pytest tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python cluster/check.py cluster/a100.yaml
	$(BIN)/python -m serve.check serve/service.yaml

# In an environment of their own, so that what they pin changes nothing here; torch is what guidellm reads tokenizers with.
$(JUDGES)/.ready: pyproject.toml
	$(BIN)/python -m venv $(JUDGES)
	$(JUDGES)/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(JUDGES)/bin/python -m pip install --quiet --disable-pip-version-check schemathesis litellm llm guidellm
	@touch $(JUDGES)/.ready

judge: $(READY) $(JUDGES)/.ready
	MOXIN_JUDGES=$(CURDIR)/$(JUDGES)/bin $(BIN)/python -m pytest tests/serve/test_serve_judges.py tests/serve/test_serve_lm_eval.py
	MOXIN_LOAD_SECONDS=600 $(BIN)/python -m pytest tests/serve/test_serve_load.py

bench-model: $(READY)
	$(BIN)/python benchmarks/model_step.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(READY)

# torch first and by itself: a machine without CUDA takes the CPU build where one is to be had, and nothing after it
# replaces it.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; name one with make PYTHON=/path/to/python"; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON); this takes a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(READY)

clean:
	rm -rf $(VENV) $(JUDGES) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
