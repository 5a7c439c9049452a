# adrec's tasks. `make` prints this list.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONFIGS ?= configs/sample

.DEFAULT_GOAL := help
# Without a GPU, torch's CPU build spares gigabytes of CUDA libraries. Where its index cannot be reached, pip goes on without it.
TORCH_INDEX := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --retries 1 --timeout 20 --extra-index-url https://download.pytorch.org/whl/cpu)

.PHONY: pictures help setup demo test test-all dist test-dist check format bench bench-quality nightly docs pins preprocess pretrain finetune evaluate score rank clean

help: ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH_INDEX) --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(STAMP) ## Create .venv and install adrec with the tested versions

test: $(STAMP) ## Run the tests (set-up included)
	$(BIN)/python -m pytest -n auto

test-all: $(STAMP) ## Run every test, the slow ones too
	$(BIN)/python -m pytest -n auto -m ""

dist: $(STAMP) ## Build wheel and sdist into dist/, with the pins of a release and its parts as CycloneDX (SBOM)
	rm -rf dist
	$(BIN)/python -m build --quiet --outdir dist .
	cp deploy/pins.txt dist/pins.txt
	$(BIN)/cyclonedx-py requirements deploy/pins.txt --pyproject pyproject.toml --output-file dist/adrec.cdx.json

pins: $(STAMP) ## Write deploy/pins.txt: what adrec[all] installs with, by version and digest
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11.5 --extra all --constraint constraints.txt --generate-hashes \
		--no-header --no-annotate --index-url https://pypi.org/simple --output-file deploy/pins.txt pyproject.toml

test-dist: dist ## Install the wheel in a fresh environment and take a small sample from logs to a server
	DIST_PYTHON=$(PYTHON) sh tests/wheel.sh dist/adrec-*.whl

check: $(STAMP) ## Lint, format check, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## Run the benchmarks (side by side ratios)
	$(BIN)/python benchmarks

bench-quality: $(STAMP) ## Run the sample's life cycle and compare its figures with those of the docs
	$(BIN)/python benchmarks/quality.py sample

nightly: test-all ## Every test, and every figure of the docs whose data is here
	$(BIN)/python benchmarks/quality.py

docs: $(STAMP) ## Write docs/commands/ and the tables of docs/data/contract.md from the code, then the site into build/site
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

pictures: $(STAMP) ## Take the README's pictures anew, of what `make demo` made
	$(BIN)/python docs/take_pictures.py

preprocess: $(STAMP) ## raw logs -> prepared folder (CONFIGS=configs/sample)
	$(BIN)/adrec preprocess --config $(CONFIGS)/preprocess.yaml

pretrain: $(STAMP) ## prepared folder -> text encoder
	$(BIN)/adrec pretrain-mlm --config $(CONFIGS)/pretrain.yaml

finetune: $(STAMP) ## prepared folder + encoder -> bundle
	$(BIN)/adrec finetune --config $(CONFIGS)/finetune.yaml

score: $(STAMP) ## bundle + new rows -> scored Parquet
	$(BIN)/adrec score --config $(CONFIGS)/score.yaml

evaluate: $(STAMP) ## scored Parquet -> metrics.json, report.html
	$(BIN)/adrec evaluate --config $(CONFIGS)/evaluate.yaml

rank: $(STAMP) ## bundle + users -> ranked ads
	$(BIN)/adrec rank --config $(CONFIGS)/rank.yaml --top-n 5

demo: $(STAMP) ## Set up, then the whole life cycle on the built-in sample
	@$(MAKE) --no-print-directory preprocess pretrain finetune score evaluate rank CONFIGS=configs/sample
