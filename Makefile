# Longspur's front door: `make demo` and `make test` need nothing prepared; see `make help`.
# Each target prepares what it uses (tools/setup.sh is idempotent), so any of them may come first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

JOBS ?= $(shell tools/jobs.sh)
FUZZ_SECONDS ?= 60
# set-up puts a cmake into .venv only where the system's is too old; asked when the recipe runs
CMAKE = $$(test -x .venv/bin/cmake && echo .venv/bin/cmake || echo cmake)
PY := .venv/bin/python
# ccache fails every compilation when it cannot write its folder, e.g. with an unusable HOME
export CCACHE_DISABLE := $(or $(CCACHE_DISABLE),$(if $(CCACHE_DIR),,$(shell test -w "$$HOME" || echo 1)))
ifeq ($(CCACHE_DISABLE),)
unexport CCACHE_DISABLE
endif

# $(call build,PRESET,TARGETS): configures when the folder is new or its inputs changed, then builds
define build
	@$(MAKE) build/$(1)/build.ninja
	@$(CMAKE) --build build/$(1) -j $(JOBS) $(if $(2),--target $(2))
endef

.PHONY: help setup demo build test bench format lint tidy asan tsan fuzz cuda-kernels clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

setup: ## install what building, demo and tests need; a second run does nothing
	@tools/setup.sh test

demo: ## a real model answers a question about a long document, from nothing
	@tools/setup.sh demo
	$(call build,release,longspur)
	@tools/demo.sh

build: ## everything, release (build/release)
	@tools/setup.sh build
	$(call build,release)

test: ## every test that this machine can run
	@tools/setup.sh test
	$(call build,release)
	@$(PY) tools/run_tests.py

bench: ## decode and prefill rates into bench/results/, README figures from them
	@tools/setup.sh demo
	$(call build,release,longspur)
	@tools/bench.sh

format: ## rewrite sources in the house format
	@tools/setup.sh test
	@tools/lint.sh --fix

lint: ## format, layers and style checks
	@tools/setup.sh test
	@tools/lint.sh

tidy: ## clang-tidy over the compiled sources (slow)
	@tools/setup.sh test
	@$(MAKE) build/release/build.ninja
	@git ls-files 'src/*.cpp' | grep -v _test.cpp | xargs -n 4 -P $(JOBS) clang-tidy --quiet -p build/release

asan: ## the C++ tests under AddressSanitizer and UBSan, without torch
	@tools/setup.sh test
	$(call build,cpu-asan)
	@$(PY) tools/run_tests.py --build build/cpu-asan --no-pytest

tsan: ## the C++ tests under ThreadSanitizer, without torch
	@tools/setup.sh test
	$(call build,cpu-tsan)
	@$(PY) tools/run_tests.py --build build/cpu-tsan --no-pytest

fuzz: ## every libFuzzer target for FUZZ_SECONDS each (needs clang++)
	@tools/setup.sh fuzz
	$(call build,fuzz,longspur_fuzzers)
	@tools/fuzz.sh $(FUZZ_SECONDS)

cuda-kernels: ## compile the CUDA kernels (needs nvcc, no GPU)
	@tools/setup.sh build
	$(call build,cuda,longspur_cuda_kernels)

# A folder that appeared since the last configuration is not among ninja's own dependencies.
LISTS := $(shell find cmake src bindings bench tests -name CMakeLists.txt 2> /dev/null)
build/%/build.ninja: CMakePresets.json .venv/.longspur-torch $(LISTS)
	@$(CMAKE) --preset $*
	@touch $@

clean: ## remove build/; .venv and .cache stay
	rm -rf build
