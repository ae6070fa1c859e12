# make demo      train the embedded sample with every strategy on this machine, and compare
# make test      the whole test suite
# make install   .venv with the pinned requirements
# make lint      ruff

PYTHON ?= python3
VENV := .venv

.PHONY: install demo test lint

install: $(VENV)/installed

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "error: Python 3.11 or 3.12 is needed; name one with make PYTHON=python3.12"; exit 2; }
	@command -v "$${CXX:-c++}" > /dev/null || \
		{ echo "error: no C++ compiler, which DeepSpeed needs; on Debian and Ubuntu: apt-get install g++"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@echo "building DeepSpeed's CPU operation (about a minute, once)"
	@rm -rf $(VENV)/torch_extensions # a build that was killed leaves a lock, on which the next one would wait for ever
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" TORCH_EXTENSIONS_DIR="$(CURDIR)/$(VENV)/torch_extensions" DS_ACCELERATOR=cpu \
		$(VENV)/bin/python -c "from deepspeed.accelerator import \
		get_accelerator as a; a().create_op_builder('ShareMemCommBuilder').load(verbose=False)" > /dev/null
	@touch $@

demo: install
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash experiments/demo.sh

test: install
	$(VENV)/bin/python -m pytest

lint: install
	$(VENV)/bin/ruff check .
