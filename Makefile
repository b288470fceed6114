# The only task runner. Each target makes the environment that it needs; `make help` lists them.
# Written for GNU Make 3.81 and any POSIX shell, which is what macOS ships.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# No target's work depends on the order of another's, but two environments at once would fight for the network.
.NOTPARALLEL:

NB ?= chapters
REPO ?=
PORT ?= 8000
BOOK_PY := .venv-book/bin/python
PY := .venv/bin/python
# A moved folder breaks an environment, so the stamp that says "complete" carries the folder's place.
PLACE := $(shell pwd -P | cksum | cut -d' ' -f1)
BOOK_ENV := .venv-book/complete-$(PLACE)
ENV := .venv/complete-$(PLACE)
LOCK_ENV := .venv-lock/complete-$(PLACE)

# One torch thread a process: tests run two processes, and stored outputs do not depend on the machine's cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
QUIET := MODELSEC_PROGRESS=0 TQDM_DISABLE=1
# Lax: each cell must run, and cells tagged nbval-check-output must print the same; claims check the numbers.
NBVAL := $(ONE_THREAD) $(QUIET) $(PY) -m pytest --nbval --nbval-lax --nbval-current-env --nbval-cell-timeout=180 \
    -n 2 --dist loadfile chapters
STAGES := lint types test-book test-package test-notebooks test-site

.PHONY: help
help: ## list the targets
	@echo "Model Security in Practice: make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile

.PHONY: book
book: $(BOOK_ENV) ## build the site (small environment, no torch) and say which file to open
	@$(BOOK_PY) tools/build_book.py

.PHONY: serve
serve: book ## show the site at http://127.0.0.1:8000 (PORT=...)
	@$(BOOK_PY) -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

.PHONY: lab
lab: $(ENV) ## open the chapters in JupyterLab, with everything installed
	@$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/chapters

.PHONY: execute
execute: $(ENV) ## run the notebooks and store their outputs (NB=loss or NB=chapters/loss.ipynb)
	@$(ONE_THREAD) $(QUIET) $(PY) tools/execute.py $(NB)

# Every stage runs even when an earlier one failed: one run tells all that is wrong.
.PHONY: test
test: $(ENV) $(BOOK_ENV) ## check everything: the six stages below, one after the other
	@command -v git >/dev/null || { echo "make test needs git, which is not on the path." >&2; exit 1; }
	@failed=; for stage in $(STAGES); do \
	    printf '\n===== %s =====\n' "$$stage"; \
	    start=$$(date +%s); \
	    $(MAKE) "$$stage" || failed="$$failed $$stage"; \
	    echo "($$stage took $$(($$(date +%s) - start)) s)"; \
	done; \
	printf '\n===== summary =====\n'; \
	if [ -n "$$failed" ]; then echo "Failed:$$failed"; exit 1; fi; \
	echo "Passed: $(STAGES)"

.PHONY: lint
lint: $(ENV) ## stage 1: style and format of code and notebooks
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

.PHONY: types
types: $(ENV) ## stage 2: types of the package
	@$(PY) -m mypy

.PHONY: test-book
test-book: $(BOOK_ENV) ## stage 3: the book builds from nothing without a warning
	@$(BOOK_PY) tools/build_book.py --clean

.PHONY: test-package
test-package: $(ENV) ## stage 4: the package, agreement with peers, rules for notebooks, tools
	@$(ONE_THREAD) $(QUIET) $(PY) -m pytest tests -m "not site" -n 2

.PHONY: test-notebooks
test-notebooks: $(ENV) ## stage 5: every notebook runs from top to bottom
	@$(NBVAL)

.PHONY: test-site
test-site: $(ENV) book ## stage 6: the pages in a browser
	@chrome=$$(sh tools/find_browser.sh) && CHROME="$$chrome" $(PY) -m pytest tests -m site -n 2

.PHONY: test-gpu
test-gpu: $(ENV) ## on a machine with CUDA: the tests that need it, and every notebook
	@$(PY) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'torch sees no CUDA device here.')"
	@$(NBVAL)
	@$(QUIET) $(PY) -m pytest tests -m gpu

.PHONY: bench
bench: $(ENV) ## compare our speed with other libraries' and write the book's page (some 25 minutes)
	@$(PY) -m benchmarks

.PHONY: gauntlet
gauntlet: $(ENV) ## try our attacks and other libraries' with correctness probes and write the page (some 10 minutes)
	@$(PY) -m benchmarks.gauntlet --book

.PHONY: agreement
agreement: $(ENV) ## compare our results with other libraries' and write the page (some 5 minutes)
	@$(PY) -m benchmarks.agreement

.PHONY: format
format: $(ENV) ## mend style and format
	@$(PY) -m ruff check --fix-only .
	@$(PY) -m ruff format .

.PHONY: lock
lock: $(LOCK_ENV) ## resolve requirements.in into requirements.txt (UPGRADE=--upgrade takes newer ones)
	@.venv-lock/bin/python -m uv pip compile --quiet $(UPGRADE) --universal --python-version 3.11 \
	    --fork-strategy fewest --no-emit-package colorama --no-emit-package pywinpty \
	    --no-header --annotation-style line requirements.in --output-file requirements.txt >/dev/null
	@{ echo "# Every version that the project installs. Made by 'make lock' from requirements.in: edit that file."; \
	    sed -e '/^# The following packages/,$$d' -e '/^$$/d' requirements.txt; } > requirements.new
	@mv requirements.new requirements.txt

.PHONY: slug
slug: ## point every link and set-up cell at REPO=owner/name
	@python=$$(PYTHON="$(PYTHON)" sh tools/find_python.sh) && "$$python" tools/slug.py "$(REPO)"

.PHONY: clean
clean: ## remove the built site and caches
	@rm -rf _build build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -path './.venv*' -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

.PHONY: clean-all
clean-all: clean ## remove the environments as well
	@rm -rf .venv .venv-book .venv-lock

# Environments. The stamp is written last, so an interrupted installation is taken up again.
# What pip has finished stays; an environment whose Python has gone is made anew.

define make_venv
@if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
    python=$$(PYTHON="$(PYTHON)" sh tools/find_python.sh) && "$$python" -m venv --clear $(1); \
fi
@rm -f $(1)/complete-*
endef

$(BOOK_ENV): requirements.txt requirements-book.txt
	$(call make_venv,.venv-book)
	@$(BOOK_PY) tools/install.py "what the book needs (about a minute)" -r requirements-book.txt -c requirements.txt
	@touch $@

$(ENV): requirements.txt tests/peers.txt pyproject.toml
	$(call make_venv,.venv)
	@$(PY) tools/install.py "everything (about five minutes, 8 GB with torch and TensorFlow)" -r requirements.txt
	@$(PY) tools/install.py "peers with pins of their own" --no-deps -r tests/peers.txt
	@$(PY) tools/install.py "modelsec itself" --no-deps --no-build-isolation -e .
	@touch $@

$(LOCK_ENV):
	$(call make_venv,.venv-lock)
	@.venv-lock/bin/python tools/install.py "uv, which resolves versions" uv==0.13.9
	@touch $@
