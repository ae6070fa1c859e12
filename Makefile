# make demo      a first result in two minutes: DDP and a pipeline on the embedded sample, on this machine
# make study     the same with four processes, too, and longer: five runs, five to eight minutes
# make check     lint (ruff, types), and the tests that start no training (budget on 2 cores: 3 minutes)
# make test      all tests but the slow ones (budget: 15 minutes)
# make test-slow the slow tests: pretended GPUs, runs of 4 processes, runs that are killed (budget: 30 minutes)
# make install   .venv with the pinned requirements; CUDA=12.6, CUDA=13.0 or CUDA=cpu: with that build of PyTorch, which
#                stays until another is named. Which one a driver needs: docs/running.md
# make lint      ruff, and types by pyright: no error outside tests/, and no more in them than there were
# make lock      requirements-cpu.lock and requirements-cuda.lock again from requirements.txt: every package, pinned
# make audit     known vulnerabilities of all that is installed in .venv, asked of PyPI; see docs/notes/security.md

PYTHON ?= python3
VENV := .venv
AUDIT := $(VENV)/tools/pip-audit@2.10.1
UV := $(VENV)/tools/uv@0.13.9
# Errors that pyright finds in tests/, in its mode "basic"; the number may only fall.
TYPE_ERRORS_IN_TESTS := 256

BUILDS := 12.6 13.0 cpu
# From the command line only, as clusters set CUDA to a folder in the environment. Unless given, the build installed last.
CUDA := $(patsubst $(VENV)/installed-%,%,$(wildcard $(VENV)/installed-*))
ifneq ($(filter-out $(BUILDS),$(CUDA))$(word 2,$(CUDA)),)
$(error CUDA=$(CUDA): no such build of PyTorch; use one of $(BUILDS), or leave CUDA out)
endif
TORCH := $(shell sed -n 's/^torch==//p' requirements-cpu.lock)
TORCH_BUILD := $(if $(filter cpu,$(CUDA)),cpu,cu$(subst .,,$(CUDA)))
# Beside PyPI, not instead of it: PyTorch's index has lacked packages that its builds need (pytorch issue 172926).
CHOSEN := $(if $(CUDA),torch==$(TORCH)+$(TORCH_BUILD) --extra-index-url https://download.pytorch.org/whl/$(TORCH_BUILD))
# NVIDIA's libraries are locked for the build that PyPI has, where there is a driver; those of the others PyTorch pins.
LOCK := requirements-$(if $(filter 13.0,$(or $(CUDA),$(if $(wildcard /proc/driver/nvidia/version),13.0))),cuda,cpu).lock
# Another build begins a new .venv, as the libraries of two builds share file names.
INSTALLED := $(VENV)/installed$(CUDA:%=-%)

.PHONY: install demo study check test test-slow lint lock audit

install: $(INSTALLED)

$(INSTALLED): $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "error: Python 3.11 or 3.12 is needed; name one with make PYTHON=python3.12"; exit 2; }
	@command -v "$${CXX:-c++}" > /dev/null || \
		{ echo "error: no C++ compiler, which DeepSpeed needs; on Debian and Ubuntu: apt-get install g++"; exit 2; }
	$(PYTHON) -m venv $(if $(filter-out $@,$(wildcard $(VENV)/installed*)),--clear) $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $(LOCK) $(CHOSEN)
	@echo "building DeepSpeed's CPU operation (about a minute, once)"
	@rm -rf $(VENV)/torch_extensions # a build that was killed leaves a lock, on which the next one would wait for ever
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" TORCH_EXTENSIONS_DIR="$(CURDIR)/$(VENV)/torch_extensions" DS_ACCELERATOR=cpu \
		$(VENV)/bin/python -c "from deepspeed.accelerator import \
		get_accelerator as a; a().create_op_builder('ShareMemCommBuilder').load(verbose=False)" > /dev/null
	@touch $@

demo study: install
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash experiments/$@.sh

check: lint
	$(VENV)/bin/python -m pytest -m "not training and not slow"

test: install
	$(VENV)/bin/python -m pytest

test-slow: install
	$(VENV)/bin/python -m pytest -m slow

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright
	@$(VENV)/bin/pyright --project tests > $(VENV)/types_of_tests.txt || true
	@found=$$(sed -n 's/^\([0-9]*\) errors\{0,1\},.*/\1/p' $(VENV)/types_of_tests.txt); \
	if [ "$${found:-9999}" -gt $(TYPE_ERRORS_IN_TESTS) ]; then cat $(VENV)/types_of_tests.txt; \
		echo "error: tests/ may have $(TYPE_ERRORS_IN_TESTS) type errors; correct the new ones"; exit 1; \
	elif [ "$$found" -lt $(TYPE_ERRORS_IN_TESTS) ]; then \
		echo "tests/ has $$found type errors only: lower TYPE_ERRORS_IN_TESTS in the Makefile"; fi

# The CPU build of PyTorch comes from its own page, or from a folder of wheels: make lock CPU_WHEELS=FOLDER. Which build
# make install takes is said by CUDA=, so the lock leaves it open.
CPU_WHEELS := https://download.pytorch.org/whl/cpu/torch/
COMPILE := pip compile requirements.txt --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--no-annotate --custom-compile-command "make lock" --quiet

lock: $(UV)
	$(UV)/bin/uv $(COMPILE) --output-file requirements-cuda.lock
	$(UV)/bin/uv $(COMPILE) --output-file requirements-cpu.lock --find-links $(CPU_WHEELS)
	sed -i 's/+cpu$$//' requirements-cpu.lock

# What is installed, by its names on PyPI, which knows no torch "2.13.0+cpu"; --strict: a package that cannot be looked up
# is a failure, not a silence.
audit: install $(AUDIT)
	$(VENV)/bin/python -m pip list --format freeze | sed 's/+.*//' > $(AUDIT)/installed.txt
	$(AUDIT)/bin/pip-audit --strict --progress-spinner off --no-deps --disable-pip --requirement $(AUDIT)/installed.txt

$(VENV)/tools/%: | install # environments of their own, so that what tools need is neither pinned nor audited
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check $(subst @,==,$*)
