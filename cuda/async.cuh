/* Copies that run beside the threads: device memory to shared memory (sm_80), shared to device memory in bulk (sm_90). */
#ifndef AWQPACK_CUDA_ASYNC_CUH
#define AWQPACK_CUDA_ASYNC_CUH

#include "common.cuh"

namespace awq_cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool has_bulk_copies = true;
#else
constexpr bool has_bulk_copies = false;
#endif

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/* Copies 16 aligned bytes; they are there after async_wait. */
template <int Load>
__device__ __forceinline__ void async_load(void *shared, const uint8_t *global)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const size_t address = __cvta_generic_to_global(global);
    if constexpr (Load == load_256) {
        asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;"
                     :
                     : "r"(shared_address(shared)), "l"(address)
                     : "memory");
    } else {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                     :
                     : "r"(shared_address(shared)), "l"(address)
                     : "memory");
    }
#else
    const Words<4> v = load_vector<4, Load>(global);
    *static_cast<uint4 *>(shared) = make_uint4(v.w[0], v.w[1], v.w[2], v.w[3]);
#endif
}

/* Waits for the loads of this thread; a barrier tells the others. */
__device__ __forceinline__ void async_wait()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}

/* Makes what this thread wrote to shared memory visible to bulk copies; a barrier follows. */
__device__ __forceinline__ void bulk_fence()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
#endif
}

/* Stores bytes, a multiple of 16, between addresses aligned to 16. */
template <bool EvictFirst>
__device__ __forceinline__ void bulk_store(uint8_t *global, const void *shared, uint32_t bytes)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const size_t address = __cvta_generic_to_global(global);
    if constexpr (EvictFirst) {
        uint64_t policy;
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;"
                     :
                     : "l"(address), "r"(shared_address(shared)), "r"(bytes), "l"(policy)
                     : "memory");
    } else {
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                     :
                     : "l"(address), "r"(shared_address(shared)), "r"(bytes)
                     : "memory");
    }
#else
    (void)global, (void)shared, (void)bytes;
#endif
}

/* Waits until the bulk stores of this thread have read shared memory. */
__device__ __forceinline__ void bulk_wait()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.commit_group;" : : : "memory");
    asm volatile("cp.async.bulk.wait_group.read 0;" : : : "memory");
#endif
}

} // namespace awq_cuda

#endif
