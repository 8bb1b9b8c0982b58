#!/bin/sh
# Runs the CUDA kernels under every tool of compute-sanitizer, side by side; the exit status is 1 if any of them found anything.
#   tests/c/sanitize_gpu.sh [all | kernels | pytest]
# PYTHON has torch, awqpack with CUDA kernels, and pytest; ARCH is what nvcc compiles for; BUILD is where check_cuda and the logs go.
set -u
cd "$(dirname "$0")/../.."
part=${1:-all}
PYTHON=${PYTHON:-python3}
ARCH=${ARCH:-native}
BUILD=${BUILD:-.build/c}
TESTS="test_cuda test_floats_cuda test_ops test_packing_twin test_bad_input test_packed_tensor"
# What cannot run here: the profiler has no room beside the sanitizer, captures and streams that keep memory need torch's
# caching allocator, and compiled kernels and huge tensors take longer than they are worth.
LEFT_OUT="not our_kernels and not portable_kernels and not of_its_own and not one_kernel and not one_fast_kernel and not capture and not record_stream and not compile and not to_the_31 \
and not out_of_memory and not one_copy"
runs=""

sanitize() { # name, tool, what to run and the tool's options
    name=$1 tool=$2
    shift 2
    (compute-sanitizer --tool "$tool" --error-exitcode 1 "$@" >"$BUILD/$name-$tool.log" 2>&1; echo $? >"$BUILD/$name-$tool.status") &
    runs="$runs $name-$tool"
}

case $part in all | kernels | pytest) ;; *) echo "expected all, kernels or pytest; got $part" >&2; exit 2 ;; esac
command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer, of the CUDA toolkit, is needed" >&2; exit 2; }
mkdir -p "$BUILD"

if [ "$part" != kernels ]; then
    export PYTHONSAFEPATH=1 # the installed awqpack, not the directory beside tests/
    "$PYTHON" -c 'import awqpack, torch
if not torch.cuda.is_available() or not awqpack.build_info()["cuda_archs"]:
    raise SystemExit("expected a GPU and awqpack with CUDA kernels; got neither or one")' || exit 2
    # Every tensor is an allocation of its own, so that an access past its end is seen. initcheck would have to check
    # every kernel of torch to know what they wrote: that tool runs over check_cuda alone.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for test in $TESTS; do
        sanitize "$test" memcheck --target-processes application-only --report-api-errors no --kernel-name kns=awq_cuda \
            "$PYTHON" -m pytest -q -m "cuda and not large" -p no:cacheprovider -k "$LEFT_OUT" "tests/$test.py"
    done
fi

if [ "$part" != pytest ]; then
    for source in cuda/*.cu tests/c/check_cuda.cu tests/c/check_cuda_floats.cu; do
        nvcc -std=c++17 -O3 -lineinfo -arch="$ARCH" -DCHECK_ONLY -Icsrc/include -Icuda -c "$source" -o "$BUILD/$(basename "$source" .cu).o" &
        compilers="${compilers:-} $!"
    done
    for compiler in $compilers; do
        wait "$compiler" || exit 2
    done
    for check in check_cuda check_cuda_floats; do
        # shellcheck disable=SC2046
        nvcc -arch="$ARCH" $(for source in cuda/*.cu; do echo "$BUILD/$(basename "$source" .cu).o"; done) "$BUILD/$check.o" \
            -o "$BUILD/$check" || exit 2
        for tool in memcheck racecheck initcheck synccheck; do
            sanitize $check $tool "$BUILD/$check" --quick
        done
    done
fi

wait
failures=""
for run in $runs; do
    echo "== $run"
    tail -n 3 "$BUILD/$run.log"
    [ "$(cat "$BUILD/$run.status")" = 0 ] || failures="$failures $BUILD/$run.log"
done
if [ -n "$failures" ]; then
    echo "found something:$failures"
    exit 1
fi
echo "nothing found"
