# Two commands: `make demo` runs the main job on this machine, `make test` runs every test.
# Both set up what they need in .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST_ARGS ?=
LOOPBACK_PORT ?= 2222

.PHONY: help setup demo test lint format docs bench loopback-up loopback-down clean

help:
	@echo 'make demo    set up, then train, collect, merge, evaluate and predict on this machine'
	@echo 'make test    set up, then lint and run all tests (PYTEST_ARGS="-k name" narrows them)'
	@echo 'make drill   every fault at every moment on ssh servers of this machine, see docs/drill.md'
	@echo 'make lint    ruff, mypy --strict, import contracts'
	@echo 'make format  let ruff format the code'
	@echo 'make docs    make docs/reference/ from the code'
	@echo 'make bench   run all benchmarks against their peers into bench.md (about an hour)'
	@echo 'make loopback-up / loopback-down   12 local ssh servers for inventories/loopback12.yaml'
	@echo 'make clean   remove .venv and what was built'

setup: $(VENV)/.worker

demo: $(VENV)/.worker
	@rm -rf .demo
	@echo '==> 1/5 train a small GLM2 on two ranks'
	@$(BIN)/glm2-orch launch --inventory inventories/local.yaml finetune
	@echo '==> 2/5 status'
	@$(BIN)/glm2-orch status
	@echo '==> 3/5 collect the sharded checkpoint and merge it'
	@$(BIN)/glm2-orch collect-ckpt --merge --out .demo
	@echo '==> 4/5 evaluate the merged weights'
	@$(BIN)/glm2-orch launch --inventory inventories/local.yaml eval --load-checkpoint .demo/merged.ckpt
	@echo '==> 5/5 predict with the merged weights'
	@$(BIN)/glm2-orch launch --inventory inventories/local.yaml predict \
	  --load-checkpoint .demo/merged.ckpt --predict-data "$$(printf '[Round 1]\n\n问：类型#上衣*颜色#白色*风格#简约\n\n答：')"

test: $(VENV)/.test sshd chromium lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

drill: $(VENV)/.test sshd
	$(BIN)/glm2-orch drill --all

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.test
	$(BIN)/python -m docs.generate

bench: $(VENV)/.test sshd
	$(BIN)/python -m benchmarks --out bench.md

loopback-up: $(VENV)/.test sshd
	$(BIN)/python -m tests.cluster.sshd up --hosts 12 --port $(LOOPBACK_PORT) --dir .loopback

loopback-down: $(VENV)/.test
	$(BIN)/python -m tests.cluster.sshd down --dir .loopback

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The tests start real ssh servers. Where the program is missing and can be installed, install it.
.PHONY: sshd
sshd:
	@PATH="$$PATH:/usr/sbin" command -v sshd >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'installing openssh-server for the tests'; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -y -qq openssh-server >/dev/null; } || true; \
	  fi; \
	  PATH="$$PATH:/usr/sbin" command -v sshd >/dev/null \
	    || echo 'openssh-server is missing: tests over SSH will be skipped'; }

# The report is looked at in a real browser; without one those tests are skipped.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'installing chromium for the tests'; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || true; \
	  fi; \
	  command -v chromium >/dev/null || echo 'chromium is missing: tests of the report in a browser will be skipped'; }

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9) and "Python 3.9 or newer is needed; name one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); $(PYTHON) -m pip install --user virtualenv && $(PYTHON) -m virtualenv $(VENV); }

$(VENV)/.worker: setup.cfg pyproject.toml | $(VENV)/bin/python
	@echo 'installing glm2-orch and MindSpore into $(VENV)'
	$(PIP) install --quiet -e '.[worker]'
	@touch $@

$(VENV)/.test: setup.cfg pyproject.toml | $(VENV)/bin/python
	@echo 'installing glm2-orch, MindSpore and the test tools into $(VENV)'
	$(PIP) install --quiet -e '.[worker,test]'
	@touch $@ $(VENV)/.worker
