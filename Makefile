# Every target sets up what it needs; only Python 3.11+ and make have to be there.
PYTHON ?= python3
DIST ?= dist
VENV ?= .venv
BIN := $(VENV)/bin
ROOMS := flows tasks fortifai_core kernels storage deployments examples

.PHONY: help demo test test-long browser screenshots chaos lint format docs models kernels-wheel bench bench-gpu gpu-wheels gpu-kit audit constraints clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "FORTIFAI needs Python 3.11 or newer; set PYTHON=/path/to/it (found: " + sys.version.split()[0] + ")")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "setting up $(VENV) (once, a few minutes) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --constraint constraints.txt --editable '.[docs]'
	@touch $@

$(VENV)/.browser: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --constraint constraints.txt --editable '.[browser]'
	@touch $@

$(VENV)/.database: $(VENV)/.run
	@DO_NOT_TRACK=1 $(BIN)/prefect server database upgrade --yes > /dev/null
	@touch $@

demo: $(VENV)/.run $(VENV)/.database  ## a Gaussian and two tiny models on their own output: what collapses, and what holds (under 5 minutes)
	@$(BIN)/fortifai demo

test: $(VENV)/.dev lint  ## lint, types, import contracts, and all tests but the long ones (below 15 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not long" --numprocesses auto --maxprocesses 8 --dist loadfile

test-long: $(VENV)/.dev  ## the tests that start servers and browsers or kill processes
	@$(BIN)/python -m pytest -q -m long --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 15

browser: $(VENV)/.browser  ## what drives the machine's own Chromium (apt-get install chromium) in test-long and for screenshots

screenshots: $(VENV)/.browser $(VENV)/.database  ## docs/ui/*.png: the UI and a report of two small runs, in Chromium
	@$(BIN)/python tests/support/screenshots.py --out docs/ui

KILLS ?= 50
chaos: $(VENV)/.dev $(VENV)/.database  ## kill, crowd and soak small experiments for about an hour; figures in chaos.json
	@$(BIN)/python -u tests/chaos --kills $(KILLS) --out chaos.json

lint: $(VENV)/.dev  ## ruff, mypy, import contracts, dead code
	@$(BIN)/ruff check $(ROOMS) tests
	@$(BIN)/ruff format --check --quiet $(ROOMS) tests
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/vulture

format: $(VENV)/.dev  ## put every file into its canonical form
	@$(BIN)/ruff check --quiet --fix $(ROOMS) tests || true
	@$(BIN)/ruff format --quiet $(ROOMS) tests

docs: $(VENV)/.docs  ## the reference of the command line anew, and the site of docs/ into site/; a warning is an error
	@$(BIN)/python -m flows.cli.reference docs/reference.md
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "site/index.html"

models: $(VENV)/.run  ## two small pretrained models (SmolLM2-135M: Apache-2.0; Gemma 3 270M: Gemma terms), 333 MB, never part of set-up
	@$(BIN)/fortifai models fetch

# built from a copy: setuptools leaves folders of its own behind
kernels-wheel: $(VENV)/.dev  ## dist/fortifai_kernels-….whl: the loss head alone, importable as fortifai_kernels, needing torch only
	@rm -rf .kernels-wheel && mkdir .kernels-wheel && cp kernels/*.py kernels/pyproject.toml kernels/README.md LICENSE .kernels-wheel
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir $(DIST) ./.kernels-wheel
	@rm -rf .kernels-wheel
	@ls $(DIST)/fortifai_kernels-*.whl

bench: $(VENV)/.run  ## speed and memory of the loss heads, as ratios
	@$(BIN)/fortifai bench kernels

# A GPU machine often reaches no registry: what it lacks is brought along as wheels, installed beside its own torch.
WHEELS ?= .whl
GPU_PYTHON ?= python3
GPU_PYTHON_VERSION ?= 3.12
GPU_CUDA ?= cu13
DEVICE ?= cuda
PEERS := liger-kernel cut-cross-entropy quack-kernels einops apache-tvm-ffi torch-c-dlpack-ext \
	nvidia-cutlass-dsl nvidia-cutlass-dsl-libs-base nvidia-cutlass-dsl-libs-core nvidia-cutlass-dsl-libs-$(GPU_CUDA) \
	cuda-bindings cuda-pathfinder protobuf
# pip's --target does not read the .pth file by which CUTLASS names its folder
GPU_PATH := .gpu:.gpu/nvidia_cutlass_dsl/dsl_packages
SETTINGS := pydantic pydantic-core annotated-types typing-inspection typing-extensions
TESTING := pytest iniconfig pluggy packaging pygments hypothesis sortedcontainers $(SETTINGS)
KIT ?= .gpu-kit
MODELS ?= smollm2
FETCH = $(BIN)/python -m pip download --quiet --disable-pip-version-check --constraint constraints.txt --no-deps \
	--only-binary=:all: --python-version $(GPU_PYTHON_VERSION) --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64

gpu-wheels: $(BIN)/python  ## into .whl: the loss heads to compare with, for a GPU machine without a registry (about 100 MB)
	@$(FETCH) --dest $(WHEELS) $(PEERS) $(TESTING)
	@du -sh $(WHEELS)

gpu-kit: $(VENV)/.run  ## into .gpu-kit: models, WikiText-2 and wheels in parts of 55 MB, for `python examples/gpu_kit.py run` on such a machine
	@$(BIN)/fortifai models fetch $(MODELS)
	@$(FETCH) --dest $(KIT)/wheels gguf $(SETTINGS)
	@$(BIN)/python examples/gpu_kit.py pack --kit $(KIT) --models $(MODELS)

bench-gpu:  ## on a GPU machine with torch and triton: the tests that use it, then times and memory of the loss heads
	@$(GPU_PYTHON) -c 'import sys, torch; "$(DEVICE)" == "cpu" or torch.cuda.is_available() or sys.exit("bench-gpu: torch sees no CUDA device here; DEVICE=cpu tries it without one")'
	@if ls $(WHEELS)/*.whl > /dev/null 2>&1; then $(GPU_PYTHON) -m pip install --quiet --disable-pip-version-check \
		--no-index --no-deps --upgrade --target .gpu $(WHEELS)/*.whl; fi
	@PYTHONPATH=$(GPU_PATH) $(GPU_PYTHON) -m pytest -q -m "not long" tests/kernels tests/fortifai_core/language/test_aligned.py
	@PYTHONPATH=$(GPU_PATH) $(GPU_PYTHON) -m kernels.bench --device $(DEVICE) --json kernels-$(DEVICE).json $(BENCH)

# in an environment of its own: what it needs would be among what it looks at
audit: $(BIN)/python  ## known vulnerabilities of the versions in constraints.txt (needs a package index, for pip-audit and its answers)
	@$(BIN)/python -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@$(VENV)/audit/bin/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip --strict

constraints: $(VENV)/.dev  ## write down the versions of this environment
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --constraint constraints.txt --editable '.[dev,docs,s3]'
	@(head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//') > constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove the environment and caches (never the artifact store)
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
