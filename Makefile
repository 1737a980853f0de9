# make help lists the targets.  Everything happens in virtual environments inside this folder;
# PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
NATIVE ?= build/native
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
CXX_FILES = $(shell git ls-files --cached --others --exclude-standard '*.cpp' '*.h')

.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help build test check lint native cross compilers pytest demo vectors signature bench engine-bench fuzz clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The environment with all tools, PyTorch included.  Made anew when its inputs change.
$(VENV)/ready: pyproject.toml constraints-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lmzip needs Python 3.11 or newer; set PYTHON=")'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints-dev.txt scikit-build-core pybind11 ninja
	$(PIP) install -q -c constraints-dev.txt --no-build-isolation -e '.[dev]' \
	  -C build-dir=build/python -C cmake.define.LMZIP_WERROR=ON
	touch $@

build: $(VENV)/ready ## build and install into .venv, warnings being errors
	$(PIP) install -q --no-deps --no-build-isolation -e . \
	  -C build-dir=build/python -C cmake.define.LMZIP_WERROR=ON

test: lint native pytest ## everything: linters, native tests under sanitizers, all Python tests

check: lint pytest ## linters and Python tests, without the native ones

lint: build ## ruff, mypy, clang-format
	@test -n "$(CXX_FILES)" || { echo "lint needs a git clone, which says what the sources are"; exit 1; }
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)

native: $(VENV)/ready ## tests/native under the address and undefined-behavior sanitizers
	cmake -S . -B $(NATIVE) -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1" -DLMZIP_PYTHON=OFF \
	  -DLMZIP_NATIVE_TESTS=ON -DLMZIP_SANITIZE=ON -DLMZIP_WERROR=ON
	cmake --build $(NATIVE) --parallel
	ctest --test-dir $(NATIVE) --output-on-failure --no-tests=error

# Debian: qemu-user g++-aarch64-linux-gnu g++-s390x-linux-gnu
CROSS ?= aarch64 s390x
cross: ## the engine's vectors on AArch64 (NEON, SDOT) and s390x (big-endian), emulated by qemu-user
	for arch in $(CROSS); do \
	  cmake -S . -B build/cross-$$arch -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$$arch \
	    -DCMAKE_CXX_COMPILER=$$arch-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static \
	    -DCMAKE_CROSSCOMPILING_EMULATOR=qemu-$$arch -DLMZIP_PYTHON=OFF -DLMZIP_NATIVE_TESTS=ON && \
	  cmake --build build/cross-$$arch --parallel --target engine_check && \
	  ctest --test-dir build/cross-$$arch -R engine_check --output-on-failure --no-tests=error || exit 1; \
	done

# Debian: clang
COMPILERS ?= g++ clang++
compilers: ## the engine's vectors from each of COMPILERS without and with all optimization: the same numbers
	for cxx in $(COMPILERS); do for level in 0 1 2 3; do \
	  cmake -S . -B build/$$cxx-O$$level -DCMAKE_CXX_COMPILER=$$cxx -DCMAKE_BUILD_TYPE=None \
	    -DCMAKE_CXX_FLAGS=-O$$level -DLMZIP_PYTHON=OFF -DLMZIP_NATIVE_TESTS=ON && \
	  cmake --build build/$$cxx-O$$level --parallel --target engine_check && \
	  ctest --test-dir build/$$cxx-O$$level -R engine_check --output-on-failure --no-tests=error || exit 1; \
	done; done

pytest: build ## the Python tests
	$(VENV)/bin/python -m pytest

demo: ## compress, list, restore and compare a real text, in a fresh environment
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lmzip needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python -m pip --disable-pip-version-check install -q .
	rm -rf build/demo && mkdir -p build/demo
	$(DEMO_VENV)/bin/lmzip compress tests/data/alice29.txt -o build/demo/alice29.txt.lmz
	$(DEMO_VENV)/bin/lmzip list build/demo/alice29.txt.lmz
	$(DEMO_VENV)/bin/lmzip decompress build/demo/alice29.txt.lmz -o build/demo/alice29.txt
	cmp tests/data/alice29.txt build/demo/alice29.txt
	@echo "restored byte for byte"

vectors: build ## write tests/vectors anew from the readable reference
	$(VENV)/bin/python tests/vectors/make.py

signature: build ## eight digits that change when any compressed byte does
	$(VENV)/bin/python tests/signature.py

bench: build ## the coder beside constriction and torchac; results in bench/results
	mkdir -p bench/results
	$(VENV)/bin/python -m pytest bench/test_coder.py --benchmark-timer=time.process_time \
	  --benchmark-sort=name --results bench/results/coder.csv

engine-bench: ## where the time of the exact engine goes, against this core's int8 limit
	cmake -S . -B build/release -DLMZIP_PYTHON=OFF
	cmake --build build/release --parallel --target lmzip_core
	$(CXX) -std=c++20 -O3 -DNDEBUG -ffp-contract=off -I csrc -I tests/native -o build/engine_bench \
	  bench/native/engine_bench.cpp build/release/liblmzip_core.a -lpthread
	build/engine_bench small
	build/engine_bench default

fuzz: build ## the properties with ten thousand examples each
	HYPOTHESIS_PROFILE=deep $(VENV)/bin/python -m pytest -k "hypothesis or fuzz or property"

clean: ## remove what was built and the virtual environments
	rm -rf $(VENV) $(DEMO_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
