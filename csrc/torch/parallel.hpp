/* A job's units on torch's thread pool, each thread with a scratch of its own. */
#ifndef AWQPACK_PARALLEL_HPP
#define AWQPACK_PARALLEL_HPP

#include <atomic>
#include <cstdlib>
#include <memory>

#include <torch/csrc/stable/ops.h>

#include "awqpack/error.h"
#include "kernels/kernels.h"

namespace awqpack {

struct Free {
    void operator()(void *memory) const { std::free(memory); }
};

/* Calls run(job, begin, end, scratch) until all of the job's units are done; *seen becomes the OR of what it
   returns. */
template <class Job, class Seen>
bool parallel_run(const Job &job, Seen (*run)(const Job *, int64_t, int64_t, void *), unsigned *seen, awq_error *error)
{
    struct Context {
        const Job *job;
        Seen (*run)(const Job *, int64_t, int64_t, void *);
        std::atomic<unsigned> seen;
        std::atomic<bool> lacks_memory;
    } context{&job, run, {0}, {false}};
    const auto run_units = [](int64_t begin, int64_t end, void *argument) {
        Context *context = static_cast<Context *>(argument);
        const size_t bytes = context->job->scratch_bytes;
        /* malloc, and aligned here: aligned_alloc takes a tenth of a microsecond more, which small tensors notice. */
        size_t room = bytes + AWQ_SCRATCH_ALIGNMENT;
        const std::unique_ptr<void, Free> memory(bytes == 0 ? nullptr : std::malloc(room));
        void *scratch = memory.get();
        if (bytes != 0 && scratch == nullptr) {
            context->lacks_memory = true;
            return;
        }
        std::align(AWQ_SCRATCH_ALIGNMENT, bytes, scratch, room);
        context->seen.fetch_or(context->run(context->job, begin, end, scratch), std::memory_order_relaxed);
    };
    if (torch_parallel_for(0, job.units, job.units_per_task, run_units, &context) != TORCH_SUCCESS) {
        return awq_fail(error, AWQ_ERROR_RUNTIME, "torch_parallel_for failed");
    }
    if (context.lacks_memory) {
        return awq_fail(error, AWQ_ERROR_MEMORY,
                        "awqpack could not allocate %zu bytes of scratch for a thread: out of memory?",
                        job.scratch_bytes);
    }
    *seen = context.seen;
    return true;
}

} // namespace awqpack

#endif
