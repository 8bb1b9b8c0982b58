/* How kernels that check what they pack tell the host of the first fault, without a copy or a memset around them. */
#ifndef AWQPACK_CUDA_FAULT_CUH
#define AWQPACK_CUDA_FAULT_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

namespace awq_cuda {

constexpr uint32_t told_blocks = 32; /* of a launch, at most, where each tells the host by itself */

/* On a line of its own: the host looks at one while blocks write others. */
struct alignas(64) BlockLine {
    uint8_t is_through;
};

/* What a call that checks has of the host's memory, which the device sees too. All are 0 between calls. */
struct alignas(64) FaultWords {
    uint32_t done;   /* all blocks are through, if they were counted */
    uint32_t faulty; /* there is a fault, and its key in device memory */
    BlockLine blocks[told_blocks];
};

/* What kernels that check work with; without words they do not. */
struct Fault {
    FaultWords *words;
    uint32_t slot;   /* of fault_slots */
    uint32_t blocks; /* of all launches that share the slot, where the host waits for blocks; else 0 */
    __host__ __device__ bool is_wanted() const { return words != nullptr; }
};

constexpr int fault_slots = 64; /* calls that may check at the same time */

/* A fault is a key; the smallest one is the first, and all ones are none. Both members are 0 between calls. */
struct FaultState {
    unsigned long long inverted; /* the bits of the smallest key, inverted */
    uint32_t blocks;             /* that are through, where they are counted */
};
static __device__ FaultState fault_states[fault_slots];

/* Keeps the smallest key. It only ever falls, so a stale look at it can cost an atomic but not lose a key. */
__device__ __forceinline__ void report_fault(const Fault &fault, unsigned long long key)
{
    unsigned long long *inverted = &fault_states[fault.slot].inverted;
    if (~key > *const_cast<volatile unsigned long long *>(inverted)) {
        atomicMax(inverted, ~key);
        *const_cast<volatile uint32_t *>(&fault.words->faulty) = 1;
        __threadfence_system(); /* before this block is through */
    }
}

/* The end of a kernel that may check, for every thread of it. */
__device__ __forceinline__ void finish_check(const Fault &fault)
{
    if (fault.blocks == 0) {
        return;
    }
    __syncthreads();
    if (threadIdx.x != 0 || threadIdx.y != 0) {
        return;
    }
    if (fault.blocks <= told_blocks && fault.blocks == gridDim.x * gridDim.y) { /* of this launch, all of them */
        *const_cast<volatile uint8_t *>(&fault.words->blocks[blockIdx.y * gridDim.x + blockIdx.x].is_through) = 1;
    } else if (atomicInc(&fault_states[fault.slot].blocks, fault.blocks - 1) == fault.blocks - 1) { /* 0 again */
        *const_cast<volatile uint32_t *>(&fault.words->done) = 1;
    }
}

/* The slots of this process, for any thread. Their words are made when the first is taken, and kept. */
class FaultPool {
  public:
    cudaError_t take(Fault *fault)
    {
        const cudaError_t error = words_.load(std::memory_order_acquire) != nullptr ? cudaSuccess : make();
        if (error != cudaSuccess) {
            return error;
        }
        uint64_t free = free_.load(std::memory_order_relaxed);
        for (;;) {
            if (free == 0) {
                std::this_thread::yield();
                free = free_.load(std::memory_order_relaxed);
            } else if (free_.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire)) {
                fault->slot = static_cast<uint32_t>(__builtin_ctzll(free));
                fault->words = words_.load(std::memory_order_relaxed) + fault->slot;
                return cudaSuccess;
            }
        }
    }

    void give_back(const Fault &fault) { free_.fetch_or(uint64_t{1} << fault.slot, std::memory_order_release); }

  private:
    cudaError_t make()
    {
        const std::lock_guard<std::mutex> guard(making_);
        if (words_.load(std::memory_order_relaxed) != nullptr) {
            return cudaSuccess;
        }
        /* another thread may be capturing, which an allocation would otherwise break off */
        cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
        cudaError_t error = cudaThreadExchangeStreamCaptureMode(&mode);
        if (error != cudaSuccess) {
            return error;
        }
        void *memory = nullptr; /* of one address on both sides, as on all we compile for */
        error = cudaHostAlloc(&memory, sizeof(FaultWords) * fault_slots, cudaHostAllocMapped | cudaHostAllocPortable);
        (void)cudaThreadExchangeStreamCaptureMode(&mode);
        if (error == cudaSuccess) {
            FaultWords *words = static_cast<FaultWords *>(memory);
            for (int i = 0; i < fault_slots; i++) {
                words[i] = {};
            }
            words_.store(words, std::memory_order_release);
        }
        return error;
    }

    std::mutex making_;
    std::atomic<FaultWords *> words_{nullptr};
    std::atomic<uint64_t> free_{UINT64_MAX};
    static_assert(fault_slots == 64, "a bit of free_ each");
};

/* Of what is compiled together, as fault_states is. */
static FaultPool &fault_pool()
{
    static FaultPool pool;
    return pool;
}

/* Up to so many blocks are counted, and the last one tells the host a microsecond or two sooner than the stream does; a
   few tell it each by itself, up to half a microsecond sooner. The host waits for the stream once its patience is over:
   the launch is large, or something else runs before it. */
constexpr uint64_t counted_blocks = 65536;
constexpr std::chrono::microseconds fault_patience{400};

inline cudaError_t wait_for_kernels(const Fault &fault, cudaStream_t stream)
{
    if (fault.blocks != 0) {
        uint32_t through = 0;
        const auto start = std::chrono::steady_clock::now();
        do {
            while (through < told_blocks &&
                   __atomic_load_n(&fault.words->blocks[through].is_through, __ATOMIC_ACQUIRE) != 0) {
                through++;
            }
            if (through == fault.blocks || __atomic_load_n(&fault.words->done, __ATOMIC_ACQUIRE) != 0) {
                return cudaSuccess;
            }
        } while (std::chrono::steady_clock::now() - start < fault_patience);
    }
    return cudaStreamSynchronize(stream);
}

inline void clear_words(const Fault &fault)
{
    fault.words->done = fault.words->faulty = 0;
    for (uint32_t i = 0; i < fault.blocks && i < told_blocks; i++) {
        fault.words->blocks[i].is_through = 0;
    }
}

/* Fetches the smallest key, and leaves the slot as it was before the launch. */
static cudaError_t fetch_fault(const Fault &fault, cudaStream_t stream, uint64_t *found)
{
    static constexpr FaultState none = {0, 0};
    FaultState state = none;
    const size_t offset = sizeof state * fault.slot;
    cudaError_t error =
        cudaMemcpyFromSymbolAsync(&state, fault_states, sizeof state, offset, cudaMemcpyDeviceToHost, stream);
    if (error == cudaSuccess) {
        error = cudaMemcpyToSymbolAsync(fault_states, &none, sizeof none, offset, cudaMemcpyHostToDevice, stream);
    }
    if (error == cudaSuccess) {
        error = cudaStreamSynchronize(stream);
    }
    *found = ~state.inverted;
    return error;
}

/*
 * Calls launch(fault), whose kernels, of `blocks` blocks in all, check and end with finish_check; then waits for what
 * they found: the smallest key, or all ones.
 */
template <class Launch>
cudaError_t run_checked(uint64_t blocks, cudaStream_t stream, uint64_t *found, Launch launch)
{
    Fault fault = {nullptr, 0, blocks <= counted_blocks ? static_cast<uint32_t>(blocks) : 0};
    cudaError_t error = fault_pool().take(&fault);
    if (error != cudaSuccess) {
        return error;
    }
    *found = UINT64_MAX;
    error = launch(fault);
    if (error == cudaSuccess) {
        error = wait_for_kernels(fault, stream);
    }
    uint64_t ignored;
    if (error == cudaSuccess) {
        if (__atomic_load_n(&fault.words->faulty, __ATOMIC_ACQUIRE) != 0) {
            error = fetch_fault(fault, stream, found);
        }
        clear_words(fault);
    } else if (fetch_fault(fault, stream, &ignored) == cudaSuccess) { /* some kernels of several may have run */
        clear_words(fault);
    } /* else nothing runs here any more, and in a forked process the words are not there */
    fault_pool().give_back(fault);
    return error;
}

} // namespace awq_cuda

#endif
