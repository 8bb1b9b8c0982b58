"""awqpack.enable: others' packers, with awqpack under them and without, give the same tensors, bit for bit."""

import importlib
import importlib.metadata
from types import SimpleNamespace

import pytest
import torch

import awqpack
from awqpack.peers import PEERS, exchange_of, rounding

GROUP = 32
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Where awqpack is put into a package: an owner, as module or module:class, and a name in it.
PLACES = {
    "compressed-tensors": [
        ("compressed_tensors.compressors.pack_quantized.helpers", "pack_to_int32"),
        ("compressed_tensors.compressors.pack_quantized.helpers", "unpack_from_int32"),
        ("compressed_tensors.compressors.pack_quantized.base", "pack_to_int32"),
        ("compressed_tensors.compressors.pack_quantized.base", "quantize"),
        ("compressed_tensors.compressors.pack_quantized.base:PackedQuantizationCompressor", "decompress"),
    ],
    "auto-round": [
        ("auto_round.export.export_to_awq.utils:WQLinear_GEMM", "from_linear"),
        ("auto_round_extension.torch.qlinear_torch:QuantLinear", "pack_248_bits"),
        ("auto_round_extension.torch.qlinear_torch_zp:QuantLinear", "pack_248_bits"),
    ],
    "autoawq": [
        ("awq.modules.linear.gemm:WQLinear_GEMM", "from_linear"),
        ("awq.modules.linear.gemv:WQLinear_GEMV", "from_linear"),
        ("awq.modules.linear.gemv_fast:WQLinear_GEMVFast", "from_linear"),
    ],
    "gptqmodel": [
        ("gptqmodel.nn_modules.qlinear.torch_awq:AwqTorchLinear", "pack"),
        ("gptqmodel.nn_modules.qlinear:PackableQuantLinear", "pack_original"),
        ("gptqmodel.nn_modules.qlinear:PackableQuantLinear", "pack_block"),
    ],
}
# compressed-tensors is there wherever the tests are; the others come with the extra packers.
PACKAGES = [name if name == "compressed-tensors" else pytest.param(name, marks=pytest.mark.clients) for name in PLACES]


def owner_of(path):
    module, _, cls = path.partition(":")
    found = pytest.importorskip(module, reason=f"needs {module}", exc_type=ImportError)
    return getattr(found, cls) if cls else found


@pytest.fixture(autouse=True)
def _disabled():
    yield
    for package in PEERS:
        awqpack.disable(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_enable_and_disable(package):
    places = [(owner_of(path), name) for path, name in PLACES[package]]
    originals = [vars(owner)[name] for owner, name in places]
    with awqpack.enable(package):
        assert all(vars(owner)[name] is not old for (owner, name), old in zip(places, originals, strict=True))
        with awqpack.enable(package):
            pass
        assert vars(places[0][0])[places[0][1]] is not originals[0]
    assert [vars(owner)[name] for owner, name in places] == originals
    awqpack.enable(package)
    awqpack.disable(package)
    awqpack.disable(package)
    assert [vars(owner)[name] for owner, name in places] == originals


def test_names_may_be_written_as_the_packages_write_them():
    assert exchange_of("AutoAWQ") is exchange_of("autoawq")
    assert exchange_of("compressed_tensors") is exchange_of("compressed-tensors")
    with awqpack.enable("Compressed_Tensors") as nothing, awqpack.enable("compressed-tensors"):
        assert nothing is None
    assert "compressed-tensors 0.17.1" in repr(exchange_of("compressed-tensors").enable())
    awqpack.disable("compressed-tensors")


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"expects one of auto-round, autoawq, .*; got 'vllm'"):
        awqpack.enable("vllm")
    with pytest.raises(ValueError, match="got 'vllm'"):
        awqpack.disable("vllm")


@pytest.mark.parametrize("package", PEERS)
def test_unknown_versions_are_refused(package, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9.9")
    known = ", ".join(exchange_of(package).versions)
    with pytest.raises(RuntimeError, match=rf"knows {package} {known}; 9\.9\.9 is installed. Nothing was changed"):
        awqpack.enable(package)


def test_a_package_that_is_missing_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match="expects gptqmodel to be installed"):
        awqpack.enable("gptqmodel")


def test_what_took_a_function_over_meanwhile_gets_the_original_back(monkeypatch):
    helpers = owner_of("compressed_tensors.compressors.pack_quantized.helpers")
    base = owner_of("compressed_tensors.compressors.pack_quantized.base")
    original = helpers.pack_to_int32
    with awqpack.enable("compressed-tensors"):
        monkeypatch.setattr(base, "pack_to_int32", helpers.pack_to_int32)  # as an import within the block does
    assert base.pack_to_int32 is original


def layer(dtype=torch.float32, scales_dtype=torch.float32, shape=(96, 128), group=GROUP, seed=0):
    """A float linear, its scales (N, G) and zeros (N, G) as uint8, its weight near to what its codes stand for."""
    generator = torch.Generator().manual_seed(seed)
    scales, zeros = awqpack.min_max_scales(torch.randn(shape, generator=generator) * 0.02, group)
    scales = scales.to(scales_dtype)
    codes = torch.randint(0, 16, shape, dtype=torch.uint8, generator=generator)
    weight = awqpack.dequantize(awqpack.pack(codes), scales, zeros, dtype=torch.float32)
    # Some lie half way between two codes, where a rounding more or less decides.
    halves = scales.float().repeat_interleave(group, 1) * (torch.rand(shape, generator=generator) < 0.3) / 2
    inside = (codes > 0) & (codes < 15)
    linear = torch.nn.Linear(shape[1], shape[0], bias=True)
    linear.weight.data = (weight + halves * inside).to(dtype)
    return SimpleNamespace(linear=linear, scales=scales, zeros=zeros, weight=linear.weight.data, group=group)


def tensors_of(result):
    if isinstance(result, torch.Tensor):
        return {"": result}
    if isinstance(result, torch.nn.Module):
        return dict(result.named_buffers())
    return dict(result)


def assert_equal(ours, theirs):
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(ours[name].nan_to_num(7), tensor.nan_to_num(7)), name
        assert ours[name].is_contiguous() == tensor.is_contiguous(), name


def compare(package, call, monkeypatch, is_served=True):
    """Both ways: the results are equal, and in the one the package's own functions ran only if they were wanted."""
    theirs = tensors_of(call())
    ran = []
    for path, name in PLACES[package]:
        owner = owner_of(path)
        if isinstance(vars(owner)[name], classmethod):
            original = vars(owner)[name].__func__

            def spy(cls, linear_or_state, *args, _original=original, _name=name, **kwargs):
                ran.extend([] if kwargs.get("init_only") else [_name])
                return _original(cls, linear_or_state, *args, **kwargs)

            monkeypatch.setattr(owner, name, classmethod(spy))
        elif isinstance(owner, type):
            original = vars(owner)[name]

            def spy(*args, _original=original, _name=name, **kwargs):
                ran.append(_name)
                return _original(*args, **kwargs)

            monkeypatch.setattr(owner, name, spy)
    with awqpack.enable(package):
        ours = tensors_of(call())
    assert_equal(ours, theirs)
    assert bool(ran) is not is_served


def scheme_of(symmetric, group=GROUP, bits=4, strategy="group"):
    quantization = pytest.importorskip("compressed_tensors.quantization", reason="needs compressed-tensors")
    how = {"num_bits": bits, "symmetric": symmetric, "strategy": strategy}
    weights = quantization.QuantizationArgs(**how, **({"group_size": group} if strategy == "group" else {}))
    return quantization.QuantizationScheme(targets=["Linear"], weights=weights)


def compressor():
    return owner_of("compressed_tensors.compressors.pack_quantized.base:PackedQuantizationCompressor")


def state_of(made, symmetric):
    state = {"weight": made.weight, "weight_scale": made.scales}
    return state if symmetric else state | {"weight_zero_point": made.zeros.view(torch.int8) - 8}


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("scales_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compressed_tensors_compresses_and_decompresses(dtype, scales_dtype, symmetric, monkeypatch):
    made, scheme = layer(dtype, scales_dtype), scheme_of(symmetric)
    compressed = compressor().compress(state_of(made, symmetric), scheme)
    compare(
        "compressed-tensors",
        lambda: compressor().compress(state_of(made, symmetric), scheme),
        monkeypatch,
    )
    compare("compressed-tensors", lambda: compressor().decompress(compressed, scheme), monkeypatch)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("packed_dim", [0, 1])
@pytest.mark.parametrize("shape", [(8, 16), (5, 13), (1, 8), (2, 24, 40), (2, 7, 9)], ids=str)
def test_compressed_tensors_helpers(shape, packed_dim, bits):
    helpers = owner_of("compressed_tensors.compressors.pack_quantized.helpers")
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-(1 << bits - 1), 1 << bits - 1, shape, dtype=torch.int8, generator=generator)
    packed = helpers.pack_to_int32(codes, bits, packed_dim)
    unpacked = helpers.unpack_from_int32(packed, bits, torch.Size(shape), packed_dim)
    with awqpack.enable("compressed-tensors"):
        ours = helpers.pack_to_int32(codes, bits, packed_dim)
        assert ours.stride() == packed.stride()
        assert torch.equal(ours, packed)
        back = helpers.unpack_from_int32(packed, bits, torch.Size(shape), packed_dim)
    assert (back.dtype, back.stride()) == (torch.int8, unpacked.stride())
    assert torch.equal(back, unpacked)
    assert torch.equal(back, codes)


def test_compressed_tensors_helpers_with_codes_outside(monkeypatch):
    """What spills over into its neighbours with theirs does so still."""
    helpers = owner_of("compressed_tensors.compressors.pack_quantized.helpers")
    codes = torch.tensor([[0, 9, -20, 3, 0, 0, 0, 0]], dtype=torch.int8)
    theirs = helpers.pack_to_int32(codes, 4)
    with awqpack.enable("compressed-tensors"):
        assert torch.equal(helpers.pack_to_int32(codes, 4), theirs)
        with pytest.raises(ValueError, match="int8"):
            helpers.pack_to_int32(codes.int(), 4)
        with pytest.raises(ValueError, match="int32"):
            helpers.unpack_from_int32(codes, 4, torch.Size((1, 8)))


@pytest.mark.parametrize("case", ["channel", "three bits", "a group order", "nan", "infinite"])
def test_compressed_tensors_other_cases(case, monkeypatch):
    made = layer(group=128 if case == "channel" else GROUP)
    scheme = scheme_of(
        False, bits=3 if case == "three bits" else 4, strategy="channel" if case == "channel" else "group"
    )
    state = state_of(made, symmetric=False)
    if case == "a group order":
        state["weight_g_idx"] = torch.arange(4).repeat(32)
    if case in ("nan", "infinite"):
        state["weight"][3, 5] = float("nan" if case == "nan" else "-inf")
    theirs = compressor().compress(dict(state), scheme)
    back = compressor().decompress(dict(theirs), scheme)
    with awqpack.enable("compressed-tensors"):
        assert_equal(compressor().compress(dict(state), scheme), theirs)
        assert_equal(compressor().decompress(dict(theirs), scheme), back)


def test_compressed_tensors_on_many_threads_and_in_inference_mode():
    """Rows are shared among threads, whose modes are their own."""
    made, scheme = layer(torch.bfloat16, torch.bfloat16, shape=(300, 512)), scheme_of(True)
    made.weight.requires_grad_(True)
    theirs = compressor().compress(state_of(made, True), scheme)
    assert made.weight.numel() > 2 * rounding.BLOCK
    with awqpack.enable("compressed-tensors"):
        assert_equal(compressor().compress(state_of(made, True), scheme), theirs)
        with torch.inference_mode():
            assert_equal(compressor().compress(state_of(made, True), scheme), theirs)


@pytest.mark.clients
@pytest.mark.parametrize("zeros", ["float32", "one for all"])
@pytest.mark.parametrize("scales_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_auto_round_awq(dtype, scales_dtype, zeros, monkeypatch):
    linear = owner_of("auto_round.export.export_to_awq.utils:WQLinear_GEMM")
    made = layer(dtype, scales_dtype)
    given = 8 if zeros == "one for all" else made.zeros.t().contiguous().float()

    def call():
        return linear.from_linear(made.linear, 4, GROUP, scales=made.scales.t().contiguous(), zeros=given, device="cpu")

    compare("auto-round", call, monkeypatch)


@pytest.mark.clients
@pytest.mark.parametrize("zeros", ["float32", "one for all"])
@pytest.mark.parametrize("variant", ["qlinear_torch", "qlinear_torch_zp"])
@pytest.mark.parametrize("scales_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_auto_round_gptq(dtype, scales_dtype, variant, zeros, monkeypatch):
    linear = owner_of(f"auto_round_extension.torch.{variant}:QuantLinear")
    made = layer(dtype, scales_dtype)

    def call():
        module = linear(4, GROUP, 128, 96, True)
        module.device = torch.device("cpu")
        module.pack(made.linear, made.scales, 8 if zeros == "one for all" else made.zeros.float(), None, "cpu")
        return module

    compare("auto-round", call, monkeypatch)


@pytest.mark.clients
@pytest.mark.parametrize(
    "case", ["three bits", "a scale of 0", "nan", "infinite", "a zero between codes", "a zero of 16"]
)
def test_auto_round_other_cases(case):
    linear = owner_of("auto_round.export.export_to_awq.utils:WQLinear_GEMM")
    made = layer()
    zeros = made.zeros.t().contiguous().float()
    if case == "a scale of 0":
        made.scales[3, 1] = 0
    if case in ("nan", "infinite"):
        made.weight[3, 5] = float("nan" if case == "nan" else "inf")
    if case.startswith("a zero"):
        zeros[1, 3] = 16 if case == "a zero of 16" else 7.5
    bits = 5 if case == "three bits" else 4

    def call():
        scales = made.scales.t().contiguous()
        return dict(
            linear.from_linear(made.linear, bits, GROUP, scales=scales, zeros=zeros, device="cpu").named_buffers()
        )

    theirs = call()
    with awqpack.enable("auto-round"):
        assert_equal(call(), theirs)


@pytest.mark.clients
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("layout", ["gemm", "gemv", "gemv_fast"])
@pytest.mark.parametrize("scales_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autoawq(dtype, scales_dtype, layout, monkeypatch):
    name = {"gemm": "WQLinear_GEMM", "gemv": "WQLinear_GEMV", "gemv_fast": "WQLinear_GEMVFast"}[layout]
    linear = owner_of(f"awq.modules.linear.{layout}:{name}")
    made = layer(dtype, scales_dtype)
    scales, zeros = made.scales, made.zeros.to(scales_dtype)
    if layout == "gemm":
        scales, zeros = scales.t().contiguous(), zeros.t().contiguous()
    compare("autoawq", lambda: linear.from_linear(made.linear, 4, GROUP, scales=scales, zeros=zeros), monkeypatch)


@pytest.mark.clients
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_autoawq_with_codes_outside(monkeypatch):
    """They are not brought into 0..15 there, and spill over; with awqpack they do, too."""
    linear = owner_of("awq.modules.linear.gemm:WQLinear_GEMM")
    made = layer()
    made.weight *= 3
    scales, zeros = made.scales.t().contiguous(), made.zeros.t().contiguous().float()
    call = lambda: linear.from_linear(made.linear, 4, GROUP, scales=scales, zeros=zeros)  # noqa: E731
    compare("autoawq", call, monkeypatch, is_served=False)


@pytest.mark.clients
@pytest.mark.parametrize("scales_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gptqmodel_awq(dtype, scales_dtype, monkeypatch):
    linear = owner_of("gptqmodel.nn_modules.qlinear.torch_awq:AwqTorchLinear")
    made = layer(dtype, scales_dtype)
    how = {"bits": 4, "group_size": GROUP, "sym": False, "desc_act": False, "in_features": 128, "out_features": 96}

    def call():
        module = linear(**how, bias=True, register_buffers=False)
        module.pack(made.linear, made.scales, made.zeros.to(scales_dtype))
        return module

    compare("gptqmodel", call, monkeypatch)


@pytest.mark.clients
@pytest.mark.parametrize("order", ["usual", "any"])
@pytest.mark.parametrize("how", ["pack_original", "pack_block"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gptqmodel_gptq(dtype, how, order, monkeypatch):
    linear = owner_of("gptqmodel.nn_modules.qlinear.torch:TorchLinear")
    monkeypatch.setenv("GPTQMODEL_DISABLE_PACK_EXT", "1")  # it takes a minute to compile
    made = layer(dtype)
    groups = torch.arange(128, dtype=torch.int32) // GROUP
    if order == "any":
        groups = groups[torch.randperm(128, generator=torch.Generator().manual_seed(0))]
    shape = {"in_features": 128, "out_features": 96}

    def call():
        module = linear(bits=4, group_size=GROUP, sym=False, desc_act=order == "any", **shape, bias=True)
        getattr(module, how)(made.linear, made.scales, made.zeros.float(), groups)
        return module

    compare("gptqmodel", call, monkeypatch)
