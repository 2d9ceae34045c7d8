# make demo: sets up and trains the small X-FM on the sample data. make test: sets up and runs the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUTPUT ?= outputs/xfm_tiny
WORKERS ?= 2

.PHONY: help setup demo test test-slow clean

help:
	@echo "make demo       sets up .venv, trains the small X-FM on the sample data (some ten minutes, 2 CPU cores) and names its report"
	@echo "make test       sets up .venv and runs the tests, two at a time (WORKERS=); make test-slow the slow ones"
	@echo "make setup      only sets up; PYTHON= names another python, VENV= another folder"

setup: $(VENV)/.ready

$(VENV)/.ready: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python tools/train_net.py --config projects/xfm/tiny_text.yaml train.output=$(OUTPUT)_text --resume
	$(BIN)/python tools/train_net.py --config projects/xfm/tiny.yaml 'init={path: $(OUTPUT)_text, parts: shared}' train.output=$(OUTPUT) --resume

test: $(VENV)/.ready
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow" tests

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -q -m slow tests

clean:
	rm -rf build *.egg-info
