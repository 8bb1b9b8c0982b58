/* Run-time choice between the instruction sets that were compiled in. */
#include "cpu.h"
#include "kernels.h"

#include <stdio.h>
#include <string.h>

typedef struct variant {
    const awq_kernels *kernels;
    bool (*is_supported)(void);
} variant;

static bool is_always_supported(void)
{
    return true;
}

#if defined(__x86_64__)
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
}
#endif

static const variant variants[] = {
    {&awq_kernels_scalar, is_always_supported},
#if defined(__x86_64__)
    {&awq_kernels_avx2, has_avx2},
    {&awq_kernels_avx512, has_avx512},
#elif defined(__aarch64__)
    {&awq_kernels_neon, is_always_supported},
#endif
};

const char *awq_cpu_name(const awq_kernels *kernels)
{
    return kernels->name;
}

const awq_kernels *awq_cpu_variant(size_t index)
{
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++) {
        if (variants[i].is_supported() && index-- == 0) {
            return variants[i].kernels;
        }
    }
    return NULL;
}

const awq_kernels *awq_cpu_choose(const char *name, awq_error *error)
{
    const bool is_free = name == NULL || name[0] == '\0';
    const awq_kernels *best = NULL;
    char names[64] = "";
    const awq_kernels *candidate;
    for (size_t i = 0; (candidate = awq_cpu_variant(i)) != NULL; i++) {
        if (!is_free && strcmp(name, candidate->name) == 0) {
            return candidate;
        }
        const size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", used == 0 ? "" : ", ", candidate->name);
        best = candidate;
    }
    if (!is_free) {
        awq_fail(error, AWQ_ERROR_VALUE, "AWQPACK_CPU expects one of the variants this CPU has (%s); got \"%.40s\"",
                 names, name);
        return NULL;
    }
    return best;
}

bool awq_cpu_prefers_pages(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_is("amd") && has_avx512();
#else
    return false;
#endif
}
