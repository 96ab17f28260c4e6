# The one front door. `make serve` needs Python 3.11+ and nothing else; a second call installs nothing and needs no network.
#
#   make serve        install what is needed, fetch the small models, start Chorus   (HOST=…, PORT=…, CONFIG=…)
#   make test         lint, types, layering and the whole test suite, real small models included
#   make fuzz         parsers, checks and routes against many more generated inputs (about five minutes)
#   make test-full    the same with many more generated cases, and nothing may be skipped
#   make e2e-ui       the dashboard in headless Chromium; screenshots in build/e2e-ui/
#   make faults       every failure of a backend against every kind of call; writes docs/faults.md
#   make lint / fix   what is wrong / repair what can be repaired
#   make artefacts    rebuild the router and the cascade that config/local.yaml serves, from the outcomes kept here
#   make docs         regenerate what is generated (docs/METHODS.md, docs/settings.md, the JSON Schema, Grafana's dashboards)
#   make bench        run the measured claims
#   make bench-gateway  CPU and latency of Chorus beside other gateways, in one run
#   make bench-routers  train every router on published tables and compare them   (CHORUS_DATA=…, SOURCES=a,b)
#   make bench-engines  what fusing costs: members alone, every fusion, plain transformers loops   (BENCH="--quick")
#   make smoke        call every name of a running `make serve`
#   make prices       write the table of models' prices anew, from the locked litellm
#   make lock         resolve the dependencies anew into locks/      (UPGRADE=1 takes newer versions)
#   make clean        remove the environment and all caches of this folder (not the model weights)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: serve test test-full fuzz e2e-ui faults lint fix docs artefacts bench bench-gateway bench-routers bench-engines smoke prices lock clean weights help

# Where the installation comes from. pip is used as you have configured it (index, mirror, proxy). Only torch is special:
# its CPU build is not on PyPI. It is asked for from your index first, and from TORCH_INDEX when that does not have it.
PYTHON      ?= python3
TORCH       ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# The suite runs in this many processes; one of them loads the models (6 GB). 0 is make's own.
PROCESSES ?= 2

CONFIG ?= config/local.yaml
PIP     = $(BIN)/python -m pip --disable-pip-version-check --quiet
BIN    := .venv/bin
STAMPS := .venv/.stamps
say     = @printf '\033[1m→ %s\033[0m\n'

help:
	@sed -n 's/^#   make/make/p' Makefile

# ------------------------------------------------------------------------------------------------------- running

serve: $(STAMPS)/serve
	@exec $(BIN)/chorus serve $(CONFIG) $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

smoke: $(STAMPS)/dev
	@$(BIN)/python tests/smoke.py $(if $(URL),--url $(URL))

bench: $(STAMPS)/dev
	@for name in memory gateway; do echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name; done

bench-gateway: $(STAMPS)/dev
	@$(BIN)/python -m benchmarks.gateway

bench-routers: $(STAMPS)/dev weights
	@$(BIN)/python -m benchmarks.routers $(if $(SOURCES),--sources $(SOURCES))
	@$(BIN)/python -m benchmarks.routers.latency

bench-engines: $(STAMPS)/dev weights
	@$(BIN)/python -m benchmarks.engines $(BENCH)

weights: $(STAMPS)/serve
	@$(BIN)/python -m engines.weights

# ------------------------------------------------------------------------------------------------------ checking

test: $(STAMPS)/dev weights lint
	$(say) "tests (a few minutes: the real small models answer)"
	@$(BIN)/python -m pytest --numprocesses $(PROCESSES) $(PYTEST)

test-full: export CHORUS_REQUIRE_ALL := 1
test-full: export HYPOTHESIS_PROFILE := thorough
test-full: test

fuzz: export CHORUS_FUZZ_ROUNDS := 30000
fuzz: export CHORUS_FUZZ_BODIES := 100000
fuzz: export CHORUS_FUZZ_EXAMPLES := 20
fuzz: export CHORUS_FUZZ_PHASES := coverage,fuzzing
fuzz: $(STAMPS)/dev
	@$(BIN)/python -m pytest tests/fuzz tests/gateway/test_request_schemas.py \
	  tests/golden/test_clients.py::test_schemathesis $(PYTEST)

e2e-ui: export CHORUS_SCREENSHOTS ?= build/e2e-ui
e2e-ui: export CHORUS_REQUIRE_ALL := 1
e2e-ui: $(STAMPS)/dev weights
	@$(BIN)/python -m pytest tests/ui tests/gateway/dashboard $(PYTEST)

faults: $(STAMPS)/dev
	@$(BIN)/python -W error -m tests.faults

lint: $(STAMPS)/dev
	$(say) "ruff, mypy, import-linter"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted; run: make fix"; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

fix: $(STAMPS)/dev
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check .

docs: $(STAMPS)/dev
	@$(BIN)/chorus methods --markdown > docs/METHODS.md.new && mv docs/METHODS.md.new docs/METHODS.md
	@$(BIN)/chorus schema > config/settings.schema.json.new && mv config/settings.schema.json.new config/settings.schema.json
	@$(BIN)/chorus schema --markdown > docs/settings.md.new && mv docs/settings.md.new docs/settings.md
	@$(BIN)/python deploy/grafana/generate.py > /dev/null

prices: $(STAMPS)/dev
	@$(BIN)/python config/prices/generate.py

# The outcomes were collected from a running `make serve` by
#   chorus collect config/local.yaml --queries config/queries/everyday.jsonl --models smollm2-135m,gemma3-270m \
#     --out config/queries/everyday.outcomes.parquet
OUTCOMES := config/queries/everyday.outcomes.parquet
# The steps were labelled by `chorus spans steps config/local.yaml --queries config/queries/everyday.jsonl
#   --categories arithmetic --out config/queries/arithmetic.steps.jsonl.gz`
STEPS := config/queries/arithmetic.steps.jsonl.gz

artefacts: $(STAMPS)/serve weights
	@$(BIN)/chorus train knn-router --outcomes $(OUTCOMES) --embedder all-minilm-l6-v2-int8 \
	  --out config/artefacts/knn-router
	@$(BIN)/chorus calibrate token-uncertainty --stages smollm2-135m,gemma3-270m --outcomes $(OUTCOMES) \
	  --share 0.3 --out config/artefacts/token-uncertainty
	@$(BIN)/chorus spans reward --steps $(STEPS) --outcomes $(OUTCOMES) --option epochs=3 \
	  --out config/artefacts/process-reward

# ---------------------------------------------------------------------------------------------------- installing
#
# Each stamp is newer than what it was made from; the lock files hold a hash for everything that comes from PyPI.

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null || { \
	  echo "Chorus needs Python 3.11 to 3.14; \`$(PYTHON)\` is $$($(PYTHON) -V 2>/dev/null || echo not there)."; \
	  echo "Name another one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "\`$(PYTHON)\` cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(say) "creating .venv with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv .venv
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/torch: $(STAMPS)/venv
	$(say) "installing $(TORCH) (190 MB, no CUDA)"
	@$(PIP) install --no-deps "$(TORCH)" >.venv/torch.log 2>&1 || { \
	  echo "  not on the index pip is configured with; asking TORCH_INDEX=$(TORCH_INDEX)"; \
	  $(PIP) install --no-deps --index-url "$(TORCH_INDEX)" "$(TORCH)" || { \
	    echo; echo "$(TORCH) could not be installed. Either have pip's index offer it, or name an index that does:"; \
	    echo "  make TORCH_INDEX=https://… $(MAKECMDGOALS)        (docs/install.md says more)"; exit 1; }; }
	@touch $@

$(STAMPS)/serve: $(STAMPS)/torch locks/serve.txt pyproject.toml
	$(say) "installing the locked requirements (about 480 MB; one to some minutes)"
	@$(PIP) install --no-deps --require-hashes -r locks/serve.txt
	$(say) "installing Chorus itself"
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMPS)/dev: $(STAMPS)/serve locks/dev.txt
	$(say) "installing the development tools"
	@$(PIP) install --no-deps --require-hashes -r locks/dev.txt
	@touch $@

# ------------------------------------------------------------------------------------------------------- locking

# dev.txt holds everything; serve.txt has no litellm, hosted.txt is a gateway with it. The smaller ones take their versions from it, so that all agree. uv reads its index from its own
# configuration (UV_DEFAULT_INDEX), and writes none into the files. What holds on every supported platform is said once,
# in pyproject.toml, and not on each line.
RESOLVE  = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-package torch \
           --override locks/overrides.txt --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) pyproject.toml

lock: $(STAMPS)/dev
	@$(RESOLVE) --extra engines --extra hosted --extra learn --extra otel --extra postgres --extra dev --output-file locks/dev.txt
	@sed -i -f locks/simplify.sed locks/dev.txt
	@$(RESOLVE) --extra engines --extra learn --extra otel --extra postgres --constraint locks/dev.txt --output-file locks/serve.txt
	@$(RESOLVE) --extra otel --extra postgres --constraint locks/dev.txt --output-file locks/gateway.txt
	@$(RESOLVE) --extra hosted --extra otel --extra postgres --constraint locks/dev.txt --output-file locks/hosted.txt
	@sed -i -f locks/simplify.sed locks/serve.txt locks/gateway.txt locks/hosted.txt
	@grep -c '^[a-z].*==' locks/*.txt

clean:
	@rm -rf .venv build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
