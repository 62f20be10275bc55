# Everything a person or CI runs. From a bare machine with Python 3.11 and pip: `make demo`, `make test`.

PYTHON ?= python3
BIN := .venv/bin
URL ?=
TEST_PROCESSES ?= 4 # files of tests at once: many wait, for a server or for their own processes
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help setup demo test lint types pytest docs chaos matrix tfjs bench bench-full clean

help:
	@echo "make setup          .venv with everything (done by the others when needed)"
	@echo "make demo [URL=…]   two workers train, one is killed, the run resumes; on local disk or any storage"
	@echo "make test           lint, types and tests: what CI runs"
	@echo "make docs           the site of these pages and docstrings, in build/docs"
	@echo "make chaos          the long runs: damaged roots, kill -9, failing system calls, every interleaving; ends with a table"
	@echo "make matrix         save under every strategy, restore under every other, bit for bit: docs/matrix.md"
	@echo "make tfjs           exports converted by the stock tensorflowjs_converter and run in Node, in environments of their own"
	@echo "make bench          save and restore compared with raw baselines and alternatives; 20 minutes, writes a page"
	@echo "make bench-full     the same at every scale: hours, 24 GiB of memory, 60 GiB of disk"
	@echo "make clean          removes .venv and everything that was generated"

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "ckptflow needs Python 3.11 or newer; here $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make setup PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing TensorFlow and the rest into .venv: several minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/python -m examples.demo.run $(if $(URL),--url '$(URL)') $(DEMO_ARGS)

# Types beside the tests: they take one core for a minute.
test: lint
	@$(MAKE) --no-print-directory --jobs 2 types pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

pytest: setup
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m 'not chaos'

docs: setup
	$(BIN)/python -m sphinx -W -n --keep-going -q -b html -d build/docs-doctrees docs build/docs
	@echo "build/docs/index.html"

chaos: setup
	$(BIN)/python -m pytest -m chaos -s -o faulthandler_timeout=0

matrix: setup
	@$(BIN)/python -m tests.matrix.run $(MATRIX_ARGS)

tfjs: setup
	@$(BIN)/python -m tests.interop.tfjs.run $(TFJS_ARGS)

# What is compared is not needed for anything else.
.venv/.bench-installed: .venv/.installed
	@echo "installing what is compared: PyTorch"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]' \
		|| echo "PyTorch is not available here: it is left out"
	@touch $@

bench: .venv/.bench-installed
	@$(BIN)/python -m benchmarks --out bench-results/quick.json $(BENCH_ARGS)

bench-full: .venv/.bench-installed
	@$(BIN)/python -m benchmarks --full --out bench-results/full.json $(BENCH_ARGS)

clean:
	rm -rf .venv build dist bench-results demo-run* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
