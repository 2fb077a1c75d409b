# `make demo` and `make test` set everything up by themselves; a second run rebuilds only what has changed.
#
#   make demo    reconstruct four images beside what scikit-image makes of them: demo_output/index.html
#   make test    lint and all tests
#   make lint    ruff, mypy and clang-format, check only;  make format  applies them
#   make wheel   a wheel without CUDA in dist/, tried in a fresh environment that has no compiler
#   make docs    the pages of lpn_fast/docs as a site in build/docs (installs mkdocs-material in an environment of its own)
#   make clean   remove the virtual environment and everything built
#
# TORCH and TRITON name what is installed where none is present; what the system's Python has is used instead.
# A CPU build of torch brings no triton, and the tests of its kernels need none but run with it.

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
TRITON ?= triton==3.6.0
JOBS   ?= 2

# deepinv, ONNX and what they need (tests/interop.txt), beside the environment: tests without them are skipped.
INTEROP := build/interop

PY  := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

NATIVE  := CMakeLists.txt pyproject.toml $(shell find csrc kernels -type f -not -name '*.pyc')
MODULES := $(VENV)/modules
CPP     := $(shell find csrc kernels -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test lint format docs wheel clean setup FORCE

demo: setup
	$(VENV)/bin/lpn-fast demo -o demo_output

test: setup lint $(INTEROP)/ready
	PYTHONPATH=$(CURDIR)/$(INTEROP) OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile -q

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP)

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

# Built from the sources alone, so nothing of the package has to be installed; a warning is an error.
docs: build/docs-env/ready
	DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 build/docs-env/bin/mkdocs build --strict -q -f lpn_fast/mkdocs.yml
	$(PYTHON) bench/notebook.py lpn_fast/docs/quickstart.md build/docs/quickstart.ipynb
	@echo 'open build/docs/index.html, or with search: $(PYTHON) -m http.server -d build/docs'

build/docs-env/ready:
	$(PYTHON) -m venv build/docs-env
	build/docs-env/bin/pip install -q --disable-pip-version-check l2m4m mkdocs-material 'mkdocstrings[python]'
	touch $@

# All or nothing: what an interrupted or refused download left behind would be found by the tests.
$(INTEROP)/ready: tests/interop.txt | $(VENV)/ready
	rm -rf $(INTEROP)
	$(PIP) install -q --no-deps --target $(INTEROP) -r tests/interop.txt || { \
		rm -rf $(INTEROP); mkdir -p $(INTEROP); \
		echo 'tests/interop.txt cannot be installed here: tests of deepinv and ONNX will be skipped'; }
	touch $@

# Built in isolation, hence without torch. The trial finds no compiler: its PATH holds the environment alone. Torch is the
# system's where there is one, the wheel's other requirements come from the index.
TRIAL := build/wheel-env
wheel:
	rm -rf dist $(TRIAL)
	CMAKE_ARGS='-DLPN_FAST_CUDA=OFF' $(PYTHON) -m pip --disable-pip-version-check wheel -q --no-deps -w dist .
	$(PYTHON) -c 'import torch' 2>/dev/null && $(PYTHON) -m venv --system-site-packages $(TRIAL) || $(PYTHON) -m venv $(TRIAL)
	$(TRIAL)/bin/python -c 'import torch' 2>/dev/null || $(TRIAL)/bin/pip install -q --disable-pip-version-check '$(TORCH)'
	cd $(TRIAL) && PATH=$(CURDIR)/$(TRIAL)/bin bin/pip install -q --disable-pip-version-check --force-reinstall --no-deps ../../dist/*.whl
	cd $(TRIAL) && PATH=$(CURDIR)/$(TRIAL)/bin bin/pip install -q --disable-pip-version-check ../../dist/*.whl
	cd $(TRIAL) && PATH=$(CURDIR)/$(TRIAL)/bin bin/python -I ../../tests/installed_wheel.py

clean:
	rm -rf $(VENV) build dist demo_output

setup: $(VENV)/installed

# The package itself, compiled and linked into the environment in place: edits of Python files need no rebuild.
$(VENV)/installed: $(VENV)/ready $(NATIVE) $(MODULES)
	$(PIP) install -q --no-build-isolation -e '.[test,demo]'
	touch $@

# The list of Python modules: the editable install has to know of new ones. Touched only when it changes.
$(MODULES): FORCE | $(VENV)/ready
	@find lpn_fast kernels -name '*.py' -o -name '*.safetensors' | sort > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

# The environment with torch and the build tools. The system's torch is used where there is one.
$(VENV)/ready:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -c 'import torch' 2>/dev/null && $(PYTHON) -m venv --system-site-packages $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PY) -c 'import torch' 2>/dev/null || $(PIP) install -q '$(TORCH)'
	$(PY) -c 'import triton' 2>/dev/null || $(PIP) install -q '$(TRITON)' || echo 'no triton for this platform: its tests will be skipped'
	$(PIP) install -q 'scikit-build-core>=0.10' 'pybind11>=2.13' cmake ninja
	touch $@

FORCE:
