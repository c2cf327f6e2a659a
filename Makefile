# `make demo` and `make test` need nothing but a Python: what is missing is installed into .venv first.

PYTHON ?= python3
VENV ?= .venv
OUT ?= out
WORKERS ?= 2
PHOTO := examples/nuthatch.jpg
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# Without a CUDA driver the CPU build of torch is enough. Where the package index only has builds with CUDA:
#   make demo TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
HAS_CUDA = $(shell { nvidia-smi -L || ldconfig -p | grep libcuda.so.1; } >/dev/null 2>&1 && echo yes)
TORCH ?= $(if $(HAS_CUDA),'torch>=2.10',torch==2.13.0)
# Kernels for CUDA are compiled where they can run; scripts/cuda_budgets.py compiles them without a GPU too.
CUDA ?= $(if $(HAS_CUDA),auto,0)

# Another Triton, that of torch 2.11, beside the newest: and the architectures for which its budgets are checked too.
OLDER := 3.6.0
OLDER_TRITON := $(VENV)/triton-$(OLDER)
ARCHITECTURES ?= 90

.PHONY: help demo test test-slow quick proofs sanitize neon gpu gpu-offline lint style types docs clean

help:
	@echo "make demo   install into $(VENV), restore $(PHOTO) and show it beside the original"
	@echo "make test   install into $(VENV) and run the tests on $(WORKERS) workers"
	@echo "make test-slow  the tests that take many seconds each, which make test leaves out"
	@echo "make quick  one case of every test of the operators and kernels, and the rule of imports, in two minutes"
	@echo "make proofs compile every kernel for six architectures, and with Triton $(OLDER) for ARCHITECTURES=\"$(ARCHITECTURES)\","
	@echo "            and compare with the budgets (minutes, no GPU)"
	@echo "make sanitize  run the native kernels under sanitizers of memory, arithmetic and threads (minutes, needs g++)"
	@echo "make neon   compile the CPU kernels for arm64 and compare every operator under qemu (two minutes, needs apt's"
	@echo "            g++-aarch64-linux-gnu and qemu-user); TESTS=1 runs their own tests too"
	@echo "make gpu    on a machine with an NVIDIA GPU: tests, sanitizer, benchmarks and a profile, in ten minutes"
	@echo "make gpu-offline  the same without a network, into the Python at hand; WHEEL=FILE if it was compiled elsewhere"
	@echo "make lint   check style with ruff and clang-format, types with mypy and pyright; make style, make types: one of them"
	@echo "make docs   build the site with the API reference into $(OUT)/site"
	@echo "make clean  remove $(VENV), $(OUT) and everything else that was made here"
	@echo "PYTHON=python3.12 chooses the Python, TORCH=... what pip installs as torch."

demo: $(INSTALLED)
	@$(BIN)/resshift-fast restore $(PHOTO) -o $(OUT) --compare
	@echo "restored photo:    $(OUT)/$(basename $(notdir $(PHOTO))).png"
	@echo "before and after:  $(OUT)/$(basename $(notdir $(PHOTO)))_compare.png"

# One thread for each worker: more would only wait for one another. Each begins with a part of its own, so that what the tests
# of a file share is made once, and takes over from others when it is done.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
test: $(INSTALLED)
	$(PYTEST) -m "not slow"

# Compilations, whole networks through slow paths, and programs that are ended from outside. HALF=0 or 1 runs every other one.
HALF ?=
test-slow: $(INSTALLED)
	$(PYTEST) -m slow $(if $(HALF),--half=$(HALF))

# What a change of an operator is most likely to break. What starts processes or traces whole networks is left to `make test`.
QUICK := python_tests/test_house.py python_tests/backends/test_dispatch.py python_tests/diffusion python_tests/ops \
	python_tests/kernels --ignore=python_tests/kernels/test_budgets.py --ignore=python_tests/kernels/test_ahead.py
quick: $(INSTALLED)
	$(PYTEST) -q --most-cases=1 $(QUICK)

# KNOWN=SEED takes over what is recorded of kernels that are as they were when their budgets were accepted, of those in Triton
# but for a sample, which that text selects; OBJECTS=build/native/cuda reads the library for CUDA that was built there, for the
# architectures that it has. In `make sanitize` it leaves out runs that are recorded and have not changed, but for one.
# CASES: of a test that has more, so many are run, here and in `make sanitize`.
# THIRD: 0, 1 or 2, of the files of tests that the older Triton runs.
# The older Triton's interpreter needs a NumPy before 2.4.
KNOWN ?=
OBJECTS ?=
CASES ?=
THIRD ?=
KERNEL_TESTS = $(filter-out %/test_budgets.py,$(shell \
	ls python_tests/kernels/test_*.py $(if $(THIRD),| awk 'NR % 3 == $(THIRD)')))
proofs: $(INSTALLED) $(OLDER_TRITON)/installed
	$(BIN)/python scripts/kernel_budgets.py $(if $(KNOWN),--known $(KNOWN))
	PYTHONPATH=$(OLDER_TRITON) $(BIN)/python scripts/kernel_budgets.py $(if $(KNOWN),--known $(KNOWN)) --arch $(ARCHITECTURES)
	PYTHONPATH=$(OLDER_TRITON) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --most-cases=$(or $(CASES),3) \
		$(KERNEL_TESTS)
	$(BIN)/python scripts/cuda_budgets.py $(if $(OBJECTS),--objects $(OBJECTS)) $(if $(KNOWN),--known)

$(OLDER_TRITON)/installed: | $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(OLDER_TRITON) \
		triton==$(OLDER) 'numpy<2.4'
	@touch $@

sanitize: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/sanitize.py $(if $(KNOWN),--known $(KNOWN)) -q -n $(WORKERS) \
		$(if $(CASES),--most-cases=$(CASES))

# TESTS=1: the operators' own tests of these kernels too.
TESTS ?=
neon: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/check_neon.py $(if $(TESTS),--tests)

# The installation is not begun where there is no GPU. ACCEPTANCE: options of scripts/gpu_acceptance.py.
NEEDS_GPU = $(if $(filter --rehearse,$(ACCEPTANCE)),true,{ nvidia-smi -L >/dev/null 2>&1 || \
	{ echo "nothing was run: there is no GPU: nvidia-smi finds none" >&2; exit 2; }; })
gpu:
	@$(NEEDS_GPU) && $(MAKE) --no-print-directory $(INSTALLED) && $(BIN)/python scripts/gpu_acceptance.py $(ACCEPTANCE)

gpu-offline:
	@$(NEEDS_GPU) && $(PYTHON) scripts/install_offline.py $(if $(WHEEL),--wheel $(WHEEL)) \
		&& $(PYTHON) scripts/gpu_acceptance.py $(ACCEPTANCE)

lint: $(INSTALLED) style types

# A second, and half a minute: .pre-commit-config.yaml has both run when they are quick enough. What is installed is not
# brought up to date for them, as the kernels in C++ would be compiled before a commit that changes them.
style: $(BIN)/clang-format $(BIN)/hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(find csrc python_tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
	$(BIN)/hadolint docker/*.Dockerfile

types: $(BIN)/pyright
	$(BIN)/python scripts/check_types.py

$(BIN)/clang-format $(BIN)/hadolint $(BIN)/pyright:
	@$(MAKE) --no-print-directory $(INSTALLED)

# No network is needed once the extra is installed.
docs: $(VENV)/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir $(OUT)/site

$(VENV)/docs-installed: $(INSTALLED)
	$(BIN)/python -c 'import latex2mathml, material, mkdocstrings_handlers.python' 2>/dev/null || \
		$(BIN)/python -m pip install --disable-pip-version-check --quiet latex2mathml mkdocs-material 'mkdocstrings[python]'
	@touch $@

clean:
	rm -rf $(VENV) $(OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find resshift_fast python_tests benchmarks scripts -name __pycache__ -prune -exec rm -rf {} +

# Written last, so that a break in between is made good by running again.
$(INSTALLED): pyproject.toml setup.py $(wildcard csrc/common/* csrc/cpu/* csrc/cpu/kernels/* csrc/cuda/* csrc/bindings/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
		{ echo "error: $(PYTHON) is missing or older than Python 3.10; name a newer one with PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(TORCH)
	RESSHIFT_FAST_CUDA=$(CUDA) $(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[dev]'
	@touch $@
