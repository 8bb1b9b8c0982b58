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
# Every test that wants a GPU runs, in as many processes as there are CPUs, but those with such a word in their name:
left_out="our_kernels portable_kernels of_its_own one_kernel one_fast_kernel one_copy" # the profiler has no room beside the sanitizer
left_out="$left_out captured_copy record_stream out_of_memory" # these need torch's caching allocator
left_out="$left_out collective dtensor processes workers" # the sanitizer does not follow processes of their own
left_out="$left_out compile export opcheck no_write_is_lost" # torch's compilers, or all of its ops, which take minutes
runs=""

sanitize() { # name, tool, what to run and the tool's options
    name=$1 tool=$2
    shift 2
    (
        begin=$(date +%s)
        compute-sanitizer --tool "$tool" --error-exitcode 1 "$@" >"$BUILD/$name-$tool.log" 2>&1
        echo "$? $(($(date +%s) - begin))" >"$BUILD/$name-$tool.status"
    ) &
    runs="$runs $name-$tool"
}

case $part in all | kernels | pytest) ;; *) echo "expected all, kernels or pytest; got $part" >&2; exit 2 ;; esac
command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer, of the CUDA toolkit, is needed" >&2; exit 2; }
mkdir -p "$BUILD"

compilers=""
if [ "$part" != pytest ]; then
    for source in cuda/*.cu tests/c/check_cuda.cu tests/c/check_cuda_floats.cu; do
        nvcc -std=c++17 -O3 -lineinfo -arch="$ARCH" -DCHECK_ONLY -Icsrc/include -Icuda -c "$source" -o "$BUILD/$(basename "$source" .cu).o" &
        compilers="$compilers $!"
    done
fi

if [ "$part" != kernels ]; then
    export PYTHONSAFEPATH=1 # the installed awqpack, not the directory beside tests/
    "$PYTHON" -c 'import awqpack, torch
if not torch.cuda.is_available() or not awqpack.build_info()["cuda_archs"]:
    raise SystemExit("expected a GPU and awqpack with CUDA kernels; got neither or one")' || exit 2
    rm -f "$BUILD"/gpu-tests*
    "$PYTHON" -m pytest -q --collect-only -p no:cacheprovider -m "cuda and not large" -k "not ($(echo "$left_out" | sed 's/ / or /g'))" tests \
        >"$BUILD/gpu-tests" || { cat "$BUILD/gpu-tests"; exit 2; }
    grep '^tests/.*::' "$BUILD/gpu-tests" | split -n "r/$(nproc)" -d - "$BUILD/gpu-tests-"
    # Every tensor is an allocation of its own, so that an access past its end is seen. initcheck would have to check
    # every kernel of torch to know what they wrote: that tool runs over check_cuda alone.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1 OMP_NUM_THREADS=1
    for names in "$BUILD"/gpu-tests-*; do
        sanitize "$(basename "$names")" memcheck --target-processes application-only --report-api-errors no --kernel-name kns=awq_cuda \
            "$PYTHON" -m pytest -q -p no:cacheprovider "@$names"
    done
fi

if [ "$part" != pytest ]; then
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
    log=$BUILD/$run.log
    read -r status seconds <"$BUILD/$run.status"
    echo "$run: $seconds s, $(grep -a '[0-9] passed' "$log" | tail -n 1), $(grep -a SUMMARY "$log" | tail -n 1)"
    [ "$status" = 0 ] || failures="$failures $log"
done
[ "$part" = kernels ] || echo "GPU tests passed: $(grep -aoh '[0-9]* passed' "$BUILD"/gpu-tests-*.log | awk '{ all += $1 } END { print all }')"
if [ -n "$failures" ]; then
    tail -n 20 $failures
    echo "found something:$failures"
    exit 1
fi
echo "nothing found"
