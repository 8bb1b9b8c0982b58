#!/bin/sh
# Runs the CUDA kernels under every tool of compute-sanitizer; the exit status is 1 if any of them found anything.
#   tests/c/sanitize_gpu.sh [all | kernels | pytest]
# PYTHON has torch, awqpack with CUDA kernels, and pytest; ARCH is what nvcc compiles for; BUILD is where check_cuda goes.
set -u
cd "$(dirname "$0")/../.."
part=${1:-all}
PYTHON=${PYTHON:-python3}
ARCH=${ARCH:-native}
BUILD=${BUILD:-.build/c}
TESTS="tests/test_cuda.py tests/test_floats_cuda.py tests/test_ops.py tests/test_packing_twin.py tests/test_bad_input.py tests/test_packed_tensor.py"
# What cannot run here: the profiler has no room beside the sanitizer, captures and streams that keep memory need torch's
# caching allocator, and compiled kernels and huge tensors take longer than they are worth.
LEFT_OUT="not our_kernels and not portable_kernels and not of_its_own and not one_kernel and not one_fast_kernel and not capture and not record_stream and not compile and not to_the_31 \
and not out_of_memory and not one_copy"
failures=""

sanitize() { # name, tool, what to run and the tool's options
    name=$1 tool=$2
    shift 2
    echo "== $name under $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$@" || failures="$failures $name/$tool"
}

case $part in all | kernels | pytest) ;; *) echo "expected all, kernels or pytest; got $part" >&2; exit 2 ;; esac
command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer, of the CUDA toolkit, is needed" >&2; exit 2; }

if [ "$part" != pytest ]; then
    mkdir -p "$BUILD"
    for check in check_cuda check_cuda_floats; do
        nvcc -std=c++17 -O3 -lineinfo -arch="$ARCH" -DCHECK_ONLY -Icsrc/include -Icuda cuda/*.cu tests/c/$check.cu \
            -o "$BUILD/$check" || exit 2
        for tool in memcheck racecheck initcheck synccheck; do
            sanitize $check $tool "$BUILD/$check" --quick
        done
    done
fi

if [ "$part" != kernels ]; then
    export PYTHONSAFEPATH=1 # the installed awqpack, not the directory beside tests/
    "$PYTHON" -c 'import awqpack, torch
if not torch.cuda.is_available() or not awqpack.build_info()["cuda_archs"]:
    raise SystemExit("expected a GPU and awqpack with CUDA kernels; got neither or one")' || exit 2
    # Every tensor is an allocation of its own, so that an access past its end is seen. initcheck would have to check
    # every kernel of torch to know what they wrote: that tool runs over check_cuda alone.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    # shellcheck disable=SC2086
    sanitize pytest memcheck --target-processes application-only --report-api-errors no --kernel-name kns=awq_cuda \
        "$PYTHON" -m pytest -q -m "cuda and not large" -p no:cacheprovider -k "$LEFT_OUT" $TESTS
fi

if [ -n "$failures" ]; then
    echo "found something:$failures"
    exit 1
fi
echo "nothing found"
