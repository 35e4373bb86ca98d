# `make demo` and `make test` do all the set-up on a machine that has a C++17 compiler, Python 3.11+ with venv, and make.
#
#   TORCH   what to hand pip for torch, e.g. TORCH=torch==2.13.0     CORPUS  text for the demo instead of Python's own
#   PYTHON  interpreter the environment is made with                  VENV    where the environment is

PYTHON ?= python3
TORCH ?= torch
VENV ?= .venv
CORPUS ?=
BIN := $(VENV)/bin
# Threads that spin while they wait slow every other process down.
export OMP_WAIT_POLICY ?= PASSIVE

native := pyproject.toml CMakeLists.txt $(wildcard cmake/* csrc/core/* csrc/bindings/*)

.PHONY: demo serve test lint sanitize bench-smoke package clean

demo: $(VENV)/.demo
	$(BIN)/tttnn demo $(if $(CORPUS),--corpus "$(CORPUS)")

# The demo's datastore and model behind a server; the address of its page is printed.
serve: $(VENV)/.serve tttnn-demo
	$(BIN)/tttnn serve "$$(ls -d tttnn-demo/datastore-* | head -n 1)" --model smollm2-135m --num-neighbors 5

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest tttnn._core --concise --mypy-config-file pyproject.toml --allowlist tests/stubtest.txt
	$(BIN)/clang-format --dry-run -Werror $(wildcard csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu tests/core/*.h tests/core/*.cpp)
	$(BIN)/codespell

# The core alone, without Python: its own tests under Address, UndefinedBehavior and Thread sanitizers. The damage test
# has one thread and takes minutes under the last.
sanitize: $(VENV)/.dev
	for kind in address,undefined thread; do \
	  PATH="$(abspath $(BIN)):$$PATH" sh -c "cmake -S . -B build/$${kind%%,*} -G Ninja -DTTTNN_PYTHON=OFF -DTTTNN_CORE_TESTS=ON \
	    -DTTTNN_CUDA=OFF -DTTTNN_SANITIZE=$$kind -DTTTNN_WERROR=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  && cmake --build build/$${kind%%,*} && ctest --test-dir build/$${kind%%,*} --output-on-failure $$([ $$kind = thread ] && echo -E store_damage)" || exit 1; \
	done

# Every benchmark once on small input: it must run and its answers must hold. Its times mean nothing.
bench-smoke: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks --smoke --benchmark-disable-gc --benchmark-min-rounds=1 --benchmark-max-time=0.01 \
	  --benchmark-warmup=off -q
	$(BIN)/python benchmarks/bench_rounds.py --rounds 30 --real-rounds 0
	$(BIN)/python benchmarks/bench_arena.py --model small-tensors --repeats 2

# A wheel built from the source distribution, without CUDA, in an empty environment. What describes the build, and the
# core itself, work without torch, transformers, zstandard and hnswlib.
package: $(VENV)/.dev
	rm -rf dist build/empty
	$(BIN)/python -m build --sdist --outdir dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist --config-settings cmake.define.TTTNN_CUDA=OFF dist/tttnn-*.tar.gz
	$(PYTHON) -m venv build/empty
	build/empty/bin/pip install --quiet --no-deps dist/tttnn-*.whl
	build/empty/bin/pip install --quiet click numpy rich
	cd build/empty && bin/tttnn info --build && bin/tttnn --version

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"

$(VENV)/.demo: $(native) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(native) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.demo

$(VENV)/.serve: $(VENV)/.demo
	$(BIN)/pip install --quiet --editable '.[demo,serve]'
	touch $@

tttnn-demo: | $(VENV)/.demo
	$(BIN)/tttnn demo

clean:
	rm -rf $(VENV) build dist tttnn-demo
