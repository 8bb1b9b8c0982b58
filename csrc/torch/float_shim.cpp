/* Registers the ops between floats and payloads, and runs them on the CPU on torch's thread pool. */
#include "kernels/float_job.h"
#include "kernels/values.h"
#include "torch/float_ops.hpp"
#include "torch/parallel.hpp"
#include "torch/shim.h"

namespace {

using awqpack::require;
using awqpack::Tensor;

/* The faults of all units. */
unsigned run_on_threads(const awq_float_job &job)
{
    unsigned faults = 0;
    awq_error error;
    require(awqpack::parallel_run(job, awq_float_job_run, &faults, &error), error);
    return faults;
}

void require_scale_values(const awq_float_views &views)
{
    unsigned faults = 0;
    awq_error error;
    awq_scale_check check;
    awq_scale_check_init(&check, views.scales, views.zeros);
    if (check.units <= check.units_per_task) {
        faults = awq_scale_check_run(&check, 0, check.units, nullptr);
    } else {
        require(awqpack::parallel_run(check, awq_scale_check_run, &faults, &error), error);
    }
    require(faults == 0 || awq_check_scale_values(views.scales, views.zeros, &error), error);
}

const awq_kernels *active_kernels()
{
    awq_error error;
    const awq_kernels *kernels = awq_active_kernels(&error);
    require(kernels != nullptr, error);
    return kernels;
}

struct Cpu {
    static void dequantize(const Tensor &, const awq_float_views &views, awq_packing packing)
    {
        awq_float_job job;
        require_scale_values(views);
        awq_float_job_init(&job, AWQ_DEQUANTIZE, packing, active_kernels(), &views, true);
        run_on_threads(job);
    }

    static void quantize(const Tensor &, const awq_float_views &views, awq_packing packing, bool validate)
    {
        awq_error error;
        awq_float_job job;
        if (validate) {
            require_scale_values(views);
        }
        awq_float_job_init(&job, AWQ_QUANTIZE, packing, active_kernels(), &views, validate);
        const unsigned faults = run_on_threads(job);
        require(!validate || faults == 0 || awq_fail_not_finite("quantize", views.weight, &error), error);
    }

    static void min_max(const Tensor &, const awq_float_views &views, awq_scale_mode mode)
    {
        awq_error error;
        awq_float_job job;
        awq_float_job_init_min_max(&job, mode, active_kernels(), &views);
        const unsigned faults = run_on_threads(job);
        require(!(faults & AWQ_FAULT_WEIGHT) || awq_fail_not_finite("min_max_scales", views.weight, &error), error);
        require(!(faults & AWQ_FAULT_RANGE) || awq_fail_range(views.scales, &error), error);
    }
};

} // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(awqpack, m)
{
    m.def("quantize(Tensor weight, Tensor scales, Tensor? zeros, int packing, bool reorder, bool validate=True) -> "
          "Tensor");
    m.def("quantize_out(Tensor weight, Tensor scales, Tensor? zeros, int packing, bool reorder, bool validate=True, "
          "*, Tensor(a!) out) -> ()");
    m.def("dequantize(Tensor payload, Tensor scales, Tensor? zeros, int packing, bool reorder, ScalarType dtype, "
          "int[]? stride_order=None) -> Tensor");
    m.def("dequantize_out(Tensor payload, Tensor scales, Tensor? zeros, int packing, bool reorder, "
          "*, Tensor(a!) out) -> ()");
    m.def("min_max_scales(Tensor weight, int group_rows, int group_cols, str formula, ScalarType dtype) -> (Tensor, "
          "Tensor)");
    m.def("min_max_scales_out(Tensor weight, int group_rows, int group_cols, str formula, "
          "*, Tensor(a!) scales, Tensor(b!) zeros) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(awqpack, CPU, m)
{
    awqpack::implement_floats<Cpu>(m);
}
