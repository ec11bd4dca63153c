# `make setup` once, then any other target; each one first brings up to date what it needs.

VENV := .venv
PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || echo python3)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

REQUIREMENTS := $(VENV)/.stamp-requirements
EDITABLE := $(VENV)/.stamp-editable
EXTENSION := jitquant/_build_info.py

# Folders are listed too: their time changes when a file is added or removed.
CXX_INPUTS := $(shell find csrc_passes -type d -o -name '*.cpp' -o -name '*.h')
CXX_FILES = $(shell find csrc_passes tests/cpp benchmarks -name '*.cpp' -o -name '*.h')

# ninja has to be on PATH for torch to find it.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DELETE_ON_ERROR:
.PHONY: setup build demo test sweep lint format clean

setup: build $(EDITABLE)

build: $(EXTENSION)

demo: setup
	$(VENV)/bin/python tutorials/efficientnet_lite0_demo.py

test: setup
	$(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile

sweep: setup
	$(VENV)/bin/python -m pytest -m sweep

lint: $(REQUIREMENTS)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: $(REQUIREMENTS)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist jitquant.egg-info jitquant/_C*.so $(EXTENSION)
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(REQUIREMENTS): requirements.txt requirements-models.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -r requirements.txt
	$(PIP) install --quiet --no-deps -r requirements-models.txt
	touch $@

$(EXTENSION): $(CXX_INPUTS) setup.py $(REQUIREMENTS)
	$(VENV)/bin/python setup.py --quiet build_ext --inplace

# After the extension, whose objects it uses again.
$(EDITABLE): setup.py pyproject.toml $(REQUIREMENTS) | $(EXTENSION)
	$(PIP) install --quiet --no-build-isolation --no-deps -e .
	touch $@
