# `make demo` and `make test` need python3 and nothing else: they set up .venv here, once.
# PYTHON=python3.12 make ... chooses the interpreter, PYTEST_ARGS='-m "not slow"' make test some of the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.virst-ready
DEMO := build/demo
CHECKED := virst_hf tests examples benchmarks setup.py
PYTEST_ARGS ?=

# Two threads are what the tests are timed with; more only make small models slower.
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help venv demo test style quality clean

help:  ## Show this list
	@awk -F ':.*## *' '/^[a-z]+:.*##/ { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

venv: $(READY)  ## Set up .venv: torch, sam2, this package and the tools of its tests

# The stamp is as new as the files that say what to install, so a second make does nothing.
$(READY): setup.py pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else "transformers 5.23 needs Python 3.11 or newer, found %d.%d: PYTHON=python3.11 make ..." % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: is its venv package installed?" >&2; exit 1; }
	@$(BIN)/python -c 'import torch, torchvision' 2>/dev/null || $(BIN)/python -m pip install --quiet torch==2.14.1 torchvision==0.29.1
	$(BIN)/python -m pip install --quiet wheel "setuptools>=77"
	$(BIN)/python -m pip install --quiet --no-build-isolation sam2
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[dev]'
	$(BIN)/python -m pip install --quiet "deepspeed>=0.15"
	@touch $@

demo: $(READY)  ## Segment a clip that it draws, with the small model of the package
	@rm -rf $(DEMO)
	@$(BIN)/python examples/make_clip.py $(DEMO)/shapes.mp4
	@echo
	$(BIN)/virst segment $(DEMO)/shapes.mp4 "the blue shape that gets smaller" "the shape with the most corners" --output $(DEMO)/masks
	@echo
	$(BIN)/virst ask $(DEMO)/shapes.mp4 "how many shapes are there?"
	@echo
	@$(BIN)/python examples/contact_sheet.py $(DEMO)/demo.jpg $(DEMO)/shapes.mp4 $(DEMO)/masks/overlay.mp4
	@echo "The clip:    $(DEMO)/shapes.mp4"
	@echo "The overlay: $(DEMO)/masks/overlay.mp4"
	@echo "A picture:   $(DEMO)/demo.jpg"
	@echo "The masks:   $(DEMO)/masks/0/*.png (gets smaller), $(DEMO)/masks/1/*.png (the most corners), $(DEMO)/masks/masks.json"

test: $(READY)  ## Run all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

style: $(READY)  ## Format the code
	$(BIN)/ruff check --fix $(wildcard $(CHECKED))
	$(BIN)/ruff format $(wildcard $(CHECKED))

quality: $(READY)  ## Check the code without changing it
	$(BIN)/ruff check $(wildcard $(CHECKED))
	$(BIN)/ruff format --check $(wildcard $(CHECKED))

clean:  ## Remove what make built, .venv included
	rm -rf build dist *.egg-info $(VENV)
