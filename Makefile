# `make demo` and `make test` do all the set-up on a machine that has a C++17 compiler, Python 3.11+ with venv, and make.
# They install the versions in constraints.txt, which were tested.
#
#   TORCH   what to hand pip for torch, e.g. TORCH=torch==2.13.0     CORPUS  text for the demo instead of Python's own
#   PYTHON  interpreter the environment is made with                  VENV    where the environment is
#   CONSTRAINTS  versions to install; empty: the newest             WORKERS tests at once, in as many processes of one thread

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
TORCH ?= $(or $(if $(CONSTRAINTS),$(shell grep '^torch==' $(CONSTRAINTS))),torch)
CORPUS ?=
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))
BIN := $(VENV)/bin
NEWEST := .venv-newest
# Threads that spin while they wait slow every other process down.
export OMP_WAIT_POLICY ?= PASSIVE
# File names are UTF-8, whatever the locale.
export PYTHONUTF8 ?= 1

native := pyproject.toml CMakeLists.txt $(wildcard cmake/* csrc/core/* csrc/bindings/*)
# An editable install remembers the names of files: one that comes or goes needs another, which compiles nothing.
names := $(VENV)/.names-$(shell find tttnn -name '*.py' | sort | cksum | cut -d ' ' -f 1)
pip_install := $(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: demo serve test test-newest constraints lint sanitize bench-smoke package docs clean

demo: $(VENV)/.demo $(VENV)/.core
	$(BIN)/tttnn demo $(if $(CORPUS),--corpus "$(CORPUS)")

# The demo's datastore and model behind a server; the address of its page is printed.
serve: $(VENV)/.serve tttnn-demo
	$(BIN)/tttnn serve "$$(ls -d tttnn-demo/datastore-* | head -n 1)" --model smollm2-135m --num-neighbors 5

test: $(VENV)/.dev $(VENV)/.core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# The tests with the newest versions of everything, in a new environment.
test-newest:
	rm -rf $(NEWEST)
	SKBUILD_BUILD_DIR=build/newest $(MAKE) test VENV=$(NEWEST) CONSTRAINTS=

# Writes the newest versions of everything into constraints.txt: those that test-newest has tried, where it was run.
constraints:
	SKBUILD_BUILD_DIR=build/newest $(MAKE) $(NEWEST)/.dev VENV=$(NEWEST) CONSTRAINTS=
	{ echo "# Versions that were tested together, as the newest on the day of: make test-newest && make constraints"; \
	  $(NEWEST)/bin/python -m pip list --format=freeze --exclude tttnn --exclude pip --exclude setuptools \
	  | sed 's/+.*//'; } > constraints.new
	mv constraints.new constraints.txt

lint: $(VENV)/.dev $(VENV)/.core
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest tttnn._core --concise --mypy-config-file pyproject.toml --allowlist tests/stubtest.txt
	$(BIN)/clang-format --dry-run -Werror $(wildcard csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu tests/core/*.h tests/core/*.cpp)
	$(BIN)/codespell

# The core alone, without Python: its own tests under Address, UndefinedBehavior and Thread sanitizers. The damage test
# has one thread and takes minutes under the last.
sanitize: $(VENV)/.dev $(VENV)/.core
	for kind in address,undefined thread; do \
	  PATH="$(abspath $(BIN)):$$PATH" sh -c "cmake -S . -B build/$${kind%%,*} -G Ninja -DTTTNN_PYTHON=OFF -DTTTNN_CORE_TESTS=ON \
	    -DTTTNN_CUDA=OFF -DTTTNN_SANITIZE=$$kind -DTTTNN_WERROR=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  && cmake --build build/$${kind%%,*} && ctest --test-dir build/$${kind%%,*} --output-on-failure $$([ $$kind = thread ] && echo -E store_damage)" || exit 1; \
	done

# Every benchmark once on small input: it must run and its answers must hold. Its times mean nothing.
bench-smoke: $(VENV)/.dev $(VENV)/.core
	$(BIN)/python -m pytest benchmarks --smoke --benchmark-disable-gc --benchmark-min-rounds=1 --benchmark-max-time=0.01 \
	  --benchmark-warmup=off -q
	$(BIN)/python benchmarks/bench_rounds.py --rounds 30 --real-rounds 0
	$(BIN)/python benchmarks/bench_arena.py --model small-tensors --repeats 2
	PYTHONPATH=. $(BIN)/python benchmarks/bench_instant.py --model small --repeats 2
	PYTHONPATH=. $(BIN)/python benchmarks/bench_serve.py --smoke

# A wheel built from the source distribution, without CUDA, in an empty environment. What describes the build, and the
# core itself, work without torch, transformers, zstandard and hnswlib.
package: export PIP_CONSTRAINT := $(abspath $(VENV)/constraints.txt)
package: export PIP_BUILD_CONSTRAINT := $(abspath $(VENV)/constraints.txt)
package: $(VENV)/.dev $(VENV)/.core
	rm -rf dist build/empty
	$(BIN)/python -m build --sdist --outdir dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist --config-settings cmake.define.TTTNN_CUDA=OFF dist/tttnn-*.tar.gz
	$(PYTHON) -m venv build/empty
	build/empty/bin/pip install --quiet --no-deps dist/tttnn-*.whl
	build/empty/bin/pip install --quiet click numpy rich
	cd build/empty && bin/tttnn info --build && bin/tttnn --version

# The site, into docs/_build: warnings are errors, and every link inside it leads somewhere.
docs: $(VENV)/.dev $(VENV)/.core
	$(BIN)/python -m sphinx -b html -q -W --keep-going docs docs/_build
	$(BIN)/python docs/_check_links.py docs/_build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# All but torch, which TORCH chooses.
$(VENV)/constraints.txt: $(CONSTRAINTS) | $(BIN)/python
	grep -v '^torch==' $(or $(CONSTRAINTS),/dev/null) > $@ || true
	$(pip_install) "$(TORCH)"

$(VENV)/.base: pyproject.toml cmake/requirements.py $(VENV)/constraints.txt
	$(BIN)/python cmake/requirements.py > $(VENV)/requirements.txt
	$(pip_install) --requirement $(VENV)/requirements.txt
	touch $@

$(VENV)/.demo: $(VENV)/.base
	$(BIN)/python cmake/requirements.py demo > $(VENV)/requirements.txt
	$(pip_install) --requirement $(VENV)/requirements.txt
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python cmake/requirements.py dev > $(VENV)/requirements.txt
	$(pip_install) --requirement $(VENV)/requirements.txt
	touch $@ $(VENV)/.demo $(VENV)/.serve  # theirs are among them

$(names): | $(BIN)/python
	rm -f $(VENV)/.names-*
	touch $@

# With the tools of the environment, the same each time: only what changed is compiled.
$(VENV)/.core: $(native) $(names) | $(VENV)/.base
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

$(VENV)/.serve: $(VENV)/.demo
	$(BIN)/python cmake/requirements.py serve > $(VENV)/requirements.txt
	$(pip_install) --requirement $(VENV)/requirements.txt
	touch $@

tttnn-demo: | $(VENV)/.demo $(VENV)/.core
	$(BIN)/tttnn demo

clean:
	rm -rf $(VENV) $(NEWEST) build dist tttnn-demo docs/_build docs/generated
