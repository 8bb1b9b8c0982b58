"""The layouts as a library: what AutoAWQ's and compressed-tensors' own code wrote, bit for bit, in every pair."""

import itertools

import pytest
import torch
from checkpoints import LAYOUT_NAMES, REFERENCE_LAYOUTS, REFERENCE_NAMES, random_layer, reference
from shared import assert_same

from awqpack.layouts import (
    LAYOUTS,
    Layer,
    LayoutError,
    TensorSpec,
    detect,
    relayout,
    relayout_runs,
    weight,
)

# What tensors alone cannot tell: these differ in values.
SEEN_AS = {"gptq_v2": "gptq", "quark-int4": "quark"}


def specs_of(tensors):
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def assert_same_bits(actual, expected):
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].shape == tensor.shape, name
        assert torch.equal(actual[name].contiguous().view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("name", REFERENCE_NAMES)
@pytest.mark.parametrize("layout", REFERENCE_LAYOUTS)
def test_decode_gives_what_the_reference_was_made_of(layout, name):
    layouts, group_size, expected = reference(name)
    layer = LAYOUTS[layout].decode(layouts[layout], group_size)
    assert_same(layer.codes.contiguous(), expected["codes"])
    assert_same(layer.zeros.contiguous(), expected["zeros"])
    assert_same(layer.scales.contiguous(), expected["scales"])
    assert_same(layer.dequantize(), expected["dequantized"])
    assert layer.group_size == group_size
    assert (layer.bias is not None) == ("bias" in expected)


@pytest.mark.parametrize("name", REFERENCE_NAMES)
@pytest.mark.parametrize(("source", "target"), list(itertools.product(REFERENCE_LAYOUTS, REFERENCE_LAYOUTS)))
def test_every_pair_writes_what_that_project_wrote(source, target, name, device):
    layouts, group_size, _ = reference(name)
    tensors = {key: tensor.to(device) for key, tensor in layouts[source].items()}
    encoded = LAYOUTS[target].encode(LAYOUTS[source].decode(tensors, group_size))
    assert_same_bits({key: tensor.cpu() for key, tensor in encoded.items()}, layouts[target])
    payload = relayout(tensors[LAYOUTS[source].names["weight"]], LAYOUTS[source].weight, LAYOUTS[target].weight)
    assert_same(payload.cpu(), layouts[target][LAYOUTS[target].names["weight"]])


@pytest.mark.parametrize("name", REFERENCE_NAMES)
@pytest.mark.parametrize("layout", REFERENCE_LAYOUTS)
def test_detection_needs_no_configuration(layout, name):
    layouts, group_size, _ = reference(name)
    assert detect(specs_of(layouts[layout])).name == SEEN_AS.get(layout, layout)
    assert LAYOUTS[layout].decode(layouts[layout]).group_size == group_size


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("n", "k", "group_size"), [(8, 64, 32), (72, 192, 64), (40, 2048, 128), (24, 320, -1), (16, 1024, 256)]
)
def test_round_trip(layout, dtype, n, k, group_size):
    layer = random_layer(n, k, group_size, dtype=dtype, bias=True, layouts=[layout])
    reason = LAYOUTS[layout].reason_not_held(layer.geometry)
    if reason is not None:
        assert layout == "mlx"
        with pytest.raises(LayoutError, match=r"group size .* is none of 32, 64, 128"):
            LAYOUTS[layout].encode(layer)
        return
    again = LAYOUTS[layout].decode(LAYOUTS[layout].encode(layer), group_size)
    for part in ("codes", "scales", "zeros", "bias"):
        assert_same(getattr(again, part).contiguous(), getattr(layer, part))


@pytest.mark.parametrize("chunk", [1, 4096, 1 << 22])
@pytest.mark.parametrize(("source", "target"), list(itertools.product(LAYOUT_NAMES, LAYOUT_NAMES)))
def test_relayout_by_chunks(source, target, chunk, monkeypatch):
    monkeypatch.setattr("awqpack.layouts.weight._CHUNK_CODES", chunk)
    codes = random_layer(72, 320, 32).codes
    one, other = LAYOUTS[source].weight, LAYOUTS[target].weight
    out = torch.full(other.shape(72, 320), -1, dtype=other.dtype)
    assert relayout(one.pack(codes), one, other, out) is out
    assert_same(out, other.pack(codes))


@pytest.mark.parametrize("chunk", [1, 4096, 1 << 22])
@pytest.mark.parametrize(
    ("source", "target"),
    [pair for pair in itertools.permutations(LAYOUT_NAMES, 2) if len({LAYOUTS[name].weight for name in pair}) == 2],
)
def test_runs_are_the_payload(source, target, chunk, monkeypatch):
    """One after the other, in memory that is used again."""
    monkeypatch.setattr("awqpack.layouts.weight._CHUNK_CODES", chunk)
    codes = random_layer(72, 320, 32).codes
    one, other = LAYOUTS[source].weight, LAYOUTS[target].weight
    memory = {
        purpose: torch.full((72 * 320,), 17, dtype=torch.uint8) for purpose in ("rows", "codes", "stored", "whole")
    }

    def take(purpose, dtype, shape):
        return memory[purpose][: shape[0] * shape[1] * dtype.itemsize].view(dtype).view(shape)

    payload = one.pack(codes)

    def rows(begin, end, take_bytes):
        part = payload[begin:end]
        return take_bytes(part.nbytes).view(part.dtype).view(part.shape).copy_(part)

    runs = relayout_runs(rows, (72, 320), one, other, take)
    assert_same(torch.cat([run.clone() for run in runs]), other.pack(codes))


@pytest.mark.parametrize("shape", [(4096, 4096), (14336, 4096), (4096, 14336), (28672, 8192), (1024, 5120)], ids=str)
def test_chunks_end_where_the_panels_of_kernels_do(shape):
    """What is left of a panel is walked a code at a time: of 216 rows of 14336 that took two fifths of a conversion."""
    for source, target in itertools.permutations({LAYOUTS[name].weight for name in LAYOUT_NAMES}, 2):
        along_k, step = weight._chunks(source, target, *shape)
        assert step % 64 == 0
        assert step * shape[not along_k] <= 3 << 20 or step == 64


def parts(**change):
    layer = random_layer(64, 256)
    return {"codes": layer.codes, "scales": layer.scales, "zeros": layer.zeros, "group_size": 128} | change


WRONG_LAYERS = {
    "group size": (
        lambda p: {"group_size": 64},
        r"scales expects .* \(64, 4\) for groups of 64; got float16 \(64, 2\)",
    ),
    "no group size": (lambda p: {"group_size": -1}, "group_size expects a divisor of the 256 columns of codes; got -1"),
    "cut columns": (lambda p: {"group_size": 48}, "group_size expects a divisor of the 256 columns of codes; got 48"),
    "wide scales": (
        lambda p: {"scales": p["scales"].double()},
        "scales expects float16, bfloat16 or float32 .* float64",
    ),
    "few scales": (lambda p: {"scales": p["scales"][:32]}, r"scales expects .* \(64, 2\) .* got float16 \(32, 2\)"),
    "infinite": (lambda p: {"scales": p["scales"] / 0}, r"scales expects numbers; scales\[0, 0\] is inf"),
    "few zeros": (
        lambda p: {"zeros": p["zeros"][:, :1]},
        r"zeros expects uint8 \(64, 2\), as scales; got uint8 \(64, 1\)",
    ),
    "large zeros": (lambda p: {"zeros": p["zeros"] | 16}, r"zeros expects 0..15; zeros\[0, 0\] is"),
    "float zeros": (lambda p: {"zeros": p["zeros"].half()}, "zeros expects uint8 .* got float16"),
    "long bias": (lambda p: {"bias": torch.zeros(65)}, r"bias expects floats of shape \(64,\); got float32 \(65,\)"),
    "whole bias": (lambda p: {"bias": torch.zeros(64).int()}, r"bias expects floats of shape \(64,\); got int32"),
    "signed codes": (lambda p: {"codes": p["codes"].char() - 8}, r"int8, which holds signed codes: \(codes \+ 8\)"),
    "experts": (lambda p: {"codes": p["codes"][None]}, "codes expects uint8 .*, the codes of one layer or expert; got"),
}


@pytest.mark.parametrize("name", WRONG_LAYERS)
def test_a_layer_is_checked_when_it_is_made(name):
    """What no layout could store so that a reader takes it."""
    change, text = WRONG_LAYERS[name]
    with pytest.raises(LayoutError, match=text):
        Layer(**parts(**change(parts())))


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_zeros_that_are_not_given(layout):
    """A symmetric layer: all are 8, and stored unless its readers then look for none."""
    layer = Layer(**parts(zeros=None))
    assert layer.is_symmetric
    tensors = LAYOUTS[layout].encode(layer)
    zeros = LAYOUTS[layout].names.get("zeros")
    assert (zeros in tensors) == (layout not in ("compressed-tensors", "modelopt"))
    tensors.pop(zeros, None)
    again = LAYOUTS[layout].decode(tensors, 128)
    assert (again.is_symmetric, again.has_zeros) == (True, False)
    assert_same(again.codes.contiguous(), layer.codes)


def test_a_layer_without_zeros_is_symmetric():
    layer = random_layer(16, 128, symmetric=True)
    assert layer.is_symmetric
    assert not random_layer(16, 128).is_symmetric
    tensors = LAYOUTS["compressed-tensors"].encode(layer)
    del tensors["weight_zero_point"]
    assert_same(LAYOUTS["compressed-tensors"].decode(tensors).zeros, layer.zeros)


@pytest.mark.parametrize(
    ("layout", "shape", "group_size", "reason"),
    [
        ("gemv_fast", (64, 96), 32, "in_features 96 is not a multiple of 64"),
        ("llm-awq", (64, 96), 32, "in_features 96 is not a multiple of 64"),
        ("gemm", (12, 64), 64, "out_features 12 is not a multiple of 8"),
        ("compressed-tensors", (12, 60), 60, "in_features 60 is not a multiple of 8"),
        ("gptq", (12, 64), 64, "out_features 12 is not a multiple of 8"),
        ("gemv", (16, 192), 96, "group size 96 is none of 32, 64 and 128 or more"),
    ],
)
def test_what_a_layout_cannot_hold(layout, shape, group_size, reason):
    n, k = shape
    layer = Layer(
        codes=torch.zeros(shape, dtype=torch.uint8),
        scales=torch.ones(n, k // group_size),
        zeros=torch.zeros(n, k // group_size, dtype=torch.uint8),
        group_size=group_size,
    )
    with pytest.raises(LayoutError, match=reason):
        LAYOUTS[layout].encode(layer)


@pytest.mark.parametrize("layout", ["gemv_fast", "llm-awq"])
def test_a_zero_that_a_zero_scale_would_lose(layout):
    layer = random_layer(16, 256)
    layer.scales[3, 1] = 0
    layer.zeros[3, 1] = 5
    with pytest.raises(LayoutError, match="would lose zero 5 of row 3, group 1, whose scale is 0"):
        LAYOUTS[layout].encode(layer)
    layer.zeros[3, 1] = 0
    assert_same(LAYOUTS[layout].decode(LAYOUTS[layout].encode(layer), 128).zeros.contiguous(), layer.zeros)


@pytest.mark.parametrize("scale", [6e-8, 1e-6, 4364.0])
def test_the_smallest_and_largest_scales_keep_every_zero(scale):
    zeros = torch.arange(16, dtype=torch.uint8).reshape(16, 1)
    layer = Layer(torch.zeros(16, 64, dtype=torch.uint8), torch.full((16, 1), scale).half(), zeros, 64)
    assert_same(LAYOUTS["gemv_fast"].decode(LAYOUTS["gemv_fast"].encode(layer), 64).zeros.contiguous(), zeros)


def test_a_scaled_zero_out_of_range_is_named():
    tensors = LAYOUTS["gemv_fast"].encode(random_layer(16, 256))
    tensors["qzeros"][1, 7] = -20 * tensors["scales"][1, 7]
    with pytest.raises(LayoutError, match=r"qzeros expects -\(scale \* zero\) with a zero of 0..15; qzeros\[1, 7\] is"):
        LAYOUTS["gemv_fast"].decode(tensors, 128)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"qzeros": None}, "qzeros is missing"),
        ({"scales": None}, "scales is missing"),
        ({"qweight": (torch.int16, (256, 2))}, "qweight expects int32 with 2 dimensions; got int16"),
        ({"qweight": (torch.int32, (2, 256, 2))}, "qweight expects int32 with 2 dimensions"),
        ({"scales": (torch.int8, (2, 16))}, "scales expects float16, bfloat16 or float32; got int8"),
        ({"scales": (torch.float16, (4, 16))}, r"scales expects float16 \(2, 16\) for groups of 128"),
        ({"qzeros": (torch.int32, (2, 3))}, r"qzeros expects int32 \(2, 2\) for groups of 128; got int32 \(2, 3\)"),
        ({"bias": (torch.float16, (3,))}, r"bias expects shape \(16,\); got \(3,\)"),
        ({"qweight": (torch.int32, (0, 2))}, "expects at least one row and column"),
    ],
)
def test_tensors_that_do_not_fit(change, text):
    specs = specs_of(LAYOUTS["gemm"].encode(random_layer(16, 256)))
    for name, spec in change.items():
        if spec is None:
            del specs[name]
        else:
            specs[name] = TensorSpec(*spec)
    with pytest.raises(LayoutError, match=text):
        LAYOUTS["gemm"].geometry(specs, 128)


@pytest.mark.parametrize("layout", ["gemv", "gemv_fast"])
def test_a_group_size_that_leaves_groups_out(layout):
    tensors = LAYOUTS[layout].encode(random_layer(16, 1024, 128))
    with pytest.raises(LayoutError, match="scales has values up to group 7, past the 4 groups of 256 columns"):
        LAYOUTS[layout].decode(tensors, 256)


def test_a_scaled_zero_between_two():
    tensors = LAYOUTS["gemv_fast"].encode(random_layer(16, 256))
    tensors["qzeros"][1, 7] -= 0.4 * tensors["scales"][1, 7]
    with pytest.raises(LayoutError, match=r"qzeros\[1, 7\] is"):
        LAYOUTS["gemv_fast"].decode(tensors, 128)


# --- GPTQ ---


def gptq_pair(**changes):
    """The same layer in both versions, with changes to its tensors."""
    layer = random_layer(72, 256, 64, bias=True, layouts=["gptq"])
    return [LAYOUTS[name].encode(layer) | changes for name in ("gptq", "gptq_v2")]


def test_gptqs_first_version_stores_zeros_minus_one():
    first, second = gptq_pair()
    assert_same(first.pop("qzeros"), second.pop("qzeros") - 0x11111111)
    assert_same_bits(first, second)
    symmetric = LAYOUTS["gptq"].encode(random_layer(72, 256, symmetric=True))
    assert bool((symmetric["qzeros"] == 0x77777777).all())


@pytest.mark.parametrize("name", REFERENCE_NAMES)
@pytest.mark.parametrize("source", REFERENCE_LAYOUTS)
def test_a_zero_of_0_has_no_place_in_gptqs_first_version(source, name):
    layouts, group_size, expected = reference(name)
    row, group = (expected["zeros"] == 0).nonzero()[0].tolist()
    layer = LAYOUTS[source].decode(layouts[source], group_size)
    with pytest.raises(LayoutError, match=f"no place for the 0 of row {row}, group {group}: gptq_v2 has"):
        LAYOUTS["gptq"].encode(layer)


def test_a_zero_that_readers_of_gptq_disagree_about():
    first, _ = gptq_pair()
    first["qzeros"][1, 0] |= 0xF
    with pytest.raises(LayoutError, match=r"qzeros\[1\] has 15 for row 0, which some readers take for a zero of 16"):
        LAYOUTS["gptq"].decode(first)


def test_columns_in_the_order_of_their_activations():
    """desc_act: GPTQ's own layouts and floats keep it, others have no place for it."""
    order = torch.randint(0, 4, (256,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    first, second = gptq_pair(g_idx=order)
    layer = LAYOUTS["gptq"].decode(first, 64)
    assert_same(layer.order, order)
    assert_same_bits(LAYOUTS["gptq_v2"].encode(layer), second)
    in_turn = LAYOUTS["gptq"].decode(gptq_pair()[0])
    assert in_turn.order is None
    columns = [
        (layer.codes[:, k].float() - layer.zeros[:, g].float()) * layer.scales[:, g].float()
        for k, g in enumerate(order)
    ]
    assert_same(layer.dequantize(), torch.stack(columns, 1).half())
    for target in set(LAYOUT_NAMES) - {"gptq", "gptq_v2"}:
        with pytest.raises(LayoutError, match="its columns are not in the order of their groups"):
            LAYOUTS[target].encode(layer)
    first["g_idx"] = order + 1
    with pytest.raises(LayoutError, match=r"g_idx expects groups 0\.\.3; got 1\.\.4"):
        LAYOUTS["gptq"].decode(first, 64)


def test_without_g_idx_groups_follow_each_other():
    first, _ = gptq_pair()
    del first["g_idx"]
    assert LAYOUTS["gptq"].decode(first).order is None
