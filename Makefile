# Two commands for a newcomer on Debian 12: `make demo` and `make test`. Each installs what it lacks and can be repeated.
.DELETE_ON_ERROR:
.PHONY: help demo test lock fuzz soak bench stubs clean packages-demo packages-test packages-bench packages-fuzz

PYTHON ?= $(firstword $(wildcard /usr/bin/python3.11) python3.11)
VENV := .venv
BIN := $(VENV)/bin
PACKAGES_DEMO := python3-venv python3-dev gcc libc6-dev libssl-dev pkg-config softhsm2 openssl
PACKAGES_TEST := $(PACKAGES_DEMO) libp11-kit-dev pcscd vsmartcard-vpcd opensc pcsc-tools \
	iproute2 util-linux libnss3 opencryptoki p11-kit-modules systemd uidmap
# Where there is a multi-buffer path to measure: Intel's library is for x86 alone.
PACKAGES_BENCH := $(PACKAGES_DEMO) $(if $(filter x86_64,$(shell uname -m)),libipsec-mb-dev)
PACKAGES_FUZZ := $(PACKAGES_DEMO) clang libclang-rt-14-dev
PROTOS := $(shell find proto -name '*.proto')
# What an installation is made of; the rest is read where it stands.
BUILD := pyproject.toml setup.py $(wildcard appliance/apdu/engine/*.[ch])

help:
	@echo "make demo    issue 12 keys into virtual SIMs on a throwaway HSM token, and verify them"
	@echo "make test    every check: lint, types, import rules, stub freshness, all tests"
	@echo "make fuzz    search for inputs that break a promise: FUZZ_RUNS executions of each target of tests/fuzz"
	@echo "make soak    kill processes and fill disks for SOAK_SECONDS, at random, and the tests too long for make test"
	@echo "make bench   measure rendering, delivery and issuance on this machine; BENCH_OPTIONS=--quick for a glance"
	@echo "make stubs   generate the gRPC stubs from proto/"
	@echo "make lock    write requirements.lock, what the images install, from pyproject.toml"
	@echo "make clean   remove build/ and caches"

demo: packages-demo $(VENV)/installed
	$(BIN)/python -m appliance demo run build/demo

test: packages-test $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 $(PYTEST_OPTIONS)

fuzz: packages-fuzz $(VENV)/installed-fuzz
	$(BIN)/python -m tests.fuzz $(if $(FUZZ_RUNS),--runs $(FUZZ_RUNS)) $(FUZZ_TARGETS)

soak: packages-test $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 -m soak $(PYTEST_OPTIONS)
	$(BIN)/python -m tests.path.random_kills --seconds $(or $(SOAK_SECONDS),600)

bench: packages-bench $(VENV)/installed-dev
	$(BIN)/python -m tests.bench $(BENCH_OPTIONS)

stubs: $(VENV)/installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. \
		--mypy_out=quiet:. --mypy_grpc_out=quiet:. $(PROTOS)

lock: $(VENV)/installed-dev
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe \
		--all-build-deps --strip-extras --no-annotate --no-emit-options --output-file requirements.lock pyproject.toml

packages-demo:
	@sh .ci/packages $(PACKAGES_DEMO)

packages-test:
	@sh .ci/packages $(PACKAGES_TEST)

packages-fuzz:
	@sh .ci/packages $(PACKAGES_FUZZ)

packages-bench:
	@sh .ci/packages $(PACKAGES_BENCH)

$(BIN)/python: | packages-demo
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BUILD) | $(BIN)/python
	@$(BIN)/python -W ignore setup.py --quiet --name >/dev/null
	@echo "Installing Python packages into $(VENV)"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-dev: $(BUILD) | $(BIN)/python
	@$(BIN)/python -W ignore setup.py --quiet --name >/dev/null
	@echo "Installing Python packages into $(VENV)"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-fuzz: $(VENV)/installed-dev
	@echo "Installing atheris into $(VENV)"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,fuzz]'
	@touch $@

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
