# Two commands do everything on a fresh machine: `make book` and `make test`.
# Options: PROFILE=smoke|classroom (default classroom), PYTHON=/path/to/python3 (for setup), FAULTS=N (for test-faults).
PROFILE ?= classroom
FAULTS ?= 1
bin = .venv/bin
pytest = $(bin)/python -m pytest -q
library = $(pytest) -n auto --dist worksteal --ignore tests/html --ignore tests/faults/inflicted

.DEFAULT_GOAL := help
.PHONY: help setup book class pdf epub slides figures gettext archive lab test test-avx2 test-faults check lint bench clean

help: ## show this list
	@echo "make TARGET [PROFILE=smoke|classroom]"
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## make or repair the environment in .venv (quick when nothing changed)
	@bash .ci/setup

book: setup ## execute every chapter that is out of date, render the book, print the page to open
	@$(bin)/periodic book --profile $(PROFILE)

class: setup ## write what a class needs to build/class (about 20 s): notebooks, answers, results, plans, handout
	@$(bin)/periodic class --profile $(PROFILE)

pdf: book ## print the whole book to build/book.pdf (needs Chromium or Chrome)
epub: book ## write the book for reading programs, build/book.epub
slides: book ## write the figures with their takeaways as one page, build/slides.html
figures: book ## write every figure as SVG, with data and code, to build/figures.zip (minutes)
gettext: book ## write the book's texts, to be translated, to build/gettext
archive: book ## write chapters, library and results, to be run without a clone, to build/archive.zip
pdf epub slides figures gettext archive:
	@$(bin)/periodic export $@ --profile $(PROFILE)

lab: setup ## open the chapters in JupyterLab (installs it the first time)
	@$(bin)/python -m pip install --quiet --constraint requirements.lock --editable ".[lab]"
	@$(bin)/jupyter lab book

test test-avx2: export OMP_NUM_THREADS = 1 # a process a core, a thread a process
test: setup ## run all tests, then execute every chapter at smoke scale and again by nbval
	@$(library) --cov --cov-report=term --cov-fail-under=90
	@echo "chapters at smoke scale, by papermill"
	@rm -rf build/smoke build/nbval && mkdir -p build/smoke build/nbval
	@PERIODIC_CACHE=$(CURDIR)/build/smoke/cache $(bin)/periodic book --no-render --profile smoke
	@echo "the same again by nbval, trained anew: are the numbers the same?"
	@PERIODIC_CACHE=$(CURDIR)/build/nbval/cache PERIODIC_RECORDS=$(CURDIR)/build/nbval/records \
		PERIODIC_PROGRESS=$(CURDIR)/build/nbval/progress MPLBACKEND=agg $(pytest) -n auto --dist loadfile -x \
		-c tests/notebooks/nbval.ini --nbval --nbval-current-env --nbval-cell-timeout 120 \
		--nbval-sanitize-with tests/notebooks/nbval_sanitize.cfg build/smoke/chapters

test-avx2: setup ## run the library's tests as on a processor without AVX-512 (x86-64)
	@ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(library)

test-faults: setup ## break everything on purpose, FAULTS=N times as often as usual (writes build/faults/)
	@$(pytest) tests/faults/inflicted --faults $(FAULTS)

check: setup ## check the rendered pages (after make book)
	@$(pytest) tests/html

lint: setup ## check code and notebooks with ruff
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .

bench: setup ## measure speed against plain PyTorch (writes data/benchmarks/)
	@$(bin)/python tests/benchmarks/bench.py

clean: ## remove everything that make made, except the environment and trained results
	rm -rf build .pytest_cache .ruff_cache .coverage .coverage.*
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
