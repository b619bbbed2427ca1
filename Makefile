# Two commands: `make demo` runs the main job on this machine, `make test` runs every test.
# Both set up what they need in .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST_ARGS ?=
LOOPBACK_PORT ?= 2222

.PHONY: help setup demo test test-all lint format docs bench loopback-up loopback-down clean

help:
	@echo 'make demo    set up, then train, collect, merge, evaluate and predict on this machine'
	@echo 'make test    set up, then lint and run all tests (PYTEST_ARGS="-k name" narrows them)'
	@echo 'make test-all  the same with the slowest tests that are much like others'
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

test: $(VENV)/.test sshd chromium cron lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: PYTEST_ARGS += -m ''
test-all: test

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

bench: $(VENV)/.test sshd peers
	$(BIN)/python -m benchmarks --out bench.md

loopback-up: $(VENV)/.test sshd
	$(BIN)/python -m tests.cluster.sshd up --hosts 12 --port $(LOOPBACK_PORT) --dir .loopback

loopback-down: $(VENV)/.test
	$(BIN)/python -m tests.cluster.sshd down --dir .loopback

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Programs that tests and benchmarks use beside our own: $(call tool,PROGRAM,PACKAGES,without it).
# Where one is missing and can be installed, install it, and start none of its services.
define tool
@PATH="$$PATH:/usr/sbin"; command -v $(1) >/dev/null || { \
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    echo 'installing $(2)'; \
    { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends $(2) >/dev/null; } || true; \
  fi; \
  command -v $(1) >/dev/null || echo '$(1) is missing: $(3)'; }
endef

.PHONY: sshd chromium cron peers
sshd:
	$(call tool,sshd,openssh-server openssh-client,tests over SSH will be skipped)
chromium:
	$(call tool,chromium,chromium fonts-dejavu-core,tests of the report in a browser will be skipped)
cron:
	$(call tool,cron,cron,the test of schedules with a real cron will be skipped)
peers:
	$(call tool,pdsh,pdsh,it does not take part)
	$(call tool,clush,clustershell,it does not take part)
	$(call tool,rsync,rsync,it does not take part)

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
