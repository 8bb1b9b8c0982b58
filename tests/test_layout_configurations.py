"""What each layout reads in a configuration, what it writes there, and whose configuration it is."""

import copy

import pytest
from checkpoints import LAYOUT_NAMES

from awqpack.layouts import LAYOUTS, LayoutError, QuantizationConfig, layout_of_config

GPTQ_CONFIG = {
    "bits": 4,
    "checkpoint_format": "gptq",
    "desc_act": False,
    "group_size": 64,
    "lm_head": False,
    "pack_dtype": "int32",
    "quant_method": "gptq",
    "sym": False,
}


def test_a_gptq_configuration():
    written = LAYOUTS["gptq"].write_config(QuantizationConfig(64, False, None, {}))
    assert written == GPTQ_CONFIG
    assert list(written) == sorted(written)
    named = QuantizationConfig(64, True, ("visual", "re:.*gate$"), {}, exact=("a.fc",))
    dynamic = {"-:.*visual.*": {}, "-:.*gate$": {}, r"-:a\.fc$": {}}
    assert LAYOUTS["gptq"].write_config(named) == GPTQ_CONFIG | {"sym": True, "dynamic": dynamic}
    own = GPTQ_CONFIG | {"damp_percent": 0.1, "format": "gptq"}
    expected = own | {"checkpoint_format": "gptq_v2", "format": "gptq_v2"}
    assert LAYOUTS["gptq_v2"].write_config(LAYOUTS["gptq"].read_config(own)) == expected


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bits": 8}, "bits expects 4; got 8"),
        ({"group_size": 0}, "group_size expects a positive number or -1; got 0"),
        ({"sym": "yes"}, "sym expects true or false; got 'yes'"),
        ({"pack_dtype": "int64"}, "pack_dtype expects int32; got 'int64'"),
        ({"dynamic": {r".*\.mlp": {"bits": 8}}}, r"dynamic expects layers of 4 bits and groups of 64; \.\*"),
    ],
)
def test_gptq_configurations_that_no_layout_holds(change, text):
    with pytest.raises(LayoutError, match=text):
        LAYOUTS["gptq"].read_config(GPTQ_CONFIG | change)


def test_what_a_gptq_configuration_leaves_out():
    config = GPTQ_CONFIG | {"dynamic": {"-:.*visual.*": {}, "+:.*mlp.*": {"bits": 4}}, "lm_head": True}
    read = LAYOUTS["gptq"].read_config(config)
    assert (read.not_converted, read.has_head, read.is_symmetric) == (("visual",), True, False)


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        ({"quant_method": "awq", "version": "gemm"}, "gemm"),
        ({"quant_method": "awq", "version": "GEMM"}, "gemm"),
        ({"quant_method": "awq"}, "gemm"),
        ({"quant_method": "awq", "version": "exllama"}, "gemm"),
        ({"quant_method": "awq", "version": "gemv_fast"}, "gemv_fast"),
        ({"quant_method": "awq", "version": "gemm", "backend": "llm-awq"}, "llm-awq"),
        ({"w_bit": 4, "q_group_size": 64, "version": "GEMV"}, "gemv"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    ],
)
def test_layout_of_a_configuration(config, layout):
    assert layout_of_config(config).name == layout


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "'gptq'"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes checkpoint, not an AWQ one"),
        ({"quant_method": "awq", "version": "marlin"}, "version expects an AWQ layout .*; got 'marlin'"),
    ],
)
def test_configurations_of_others(config, text):
    with pytest.raises(LayoutError, match=text):
        layout_of_config(config)


AWQ_CONFIG = {
    "bits": 4,
    "group_size": 64,
    "modules_to_not_convert": ["visual"],
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, AWQ_CONFIG),
        ({"quant_method": "gptq", "desc_act": True}, AWQ_CONFIG),
        ({"version": "gemv"}, AWQ_CONFIG),
        (AWQ_CONFIG | {"group_size": 128, "bits": 3, "modules_to_not_convert": None}, AWQ_CONFIG),
        (AWQ_CONFIG | {"modules_to_not_convert": ["other"], "do_fuse": True}, AWQ_CONFIG | {"do_fuse": True}),
        (
            {"w_bit": 4, "q_group_size": 128, "version": "GEMV"},
            {
                "w_bit": 4,
                "q_group_size": 64,
                "version": "GEMM",
                "zero_point": True,
                "modules_to_not_convert": ["visual"],
            },
        ),
        (
            {"quant_method": "awq", "format": "gemv_fast", "checkpoint_format": "gemv_fast", "pack_dtype": "int16"},
            {key: value for key, value in AWQ_CONFIG.items() if key != "version"}
            | {"format": "gemm", "checkpoint_format": "gemm", "pack_dtype": "int32"},
        ),
    ],
)
def test_an_awq_configuration_says_what_it_is_told(raw, expected):
    """Whatever the configuration it comes from says, whose other keys stay."""
    assert LAYOUTS["gemm"].write_config(QuantizationConfig(64, False, ("visual",), raw)) == expected


@pytest.mark.parametrize(("raw", "zero_point"), [({}, True), ({"quant_method": "awq", "zero_point": False}, False)])
def test_zero_point_of_a_symmetric_model(raw, zero_point):
    """Zeros are stored, and said to be: unless the model said otherwise all along."""
    assert LAYOUTS["gemv"].write_config(QuantizationConfig(64, True, None, raw))["zero_point"] is zero_point


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("has_head", [False, True])
def test_a_quantized_head_is_said(layout, has_head):
    written = LAYOUTS[layout].write_config(QuantizationConfig(64, False, None, {}, has_head=has_head))
    if layout == "mlx":  # whose readers look for a layer's scales
        assert "lm_head" not in written
        return
    left_out = written.get("ignore", written.get("exclude"))
    if left_out is None:
        assert written.get("lm_head", False) is has_head
    else:
        assert ("lm_head" in left_out) is not has_head
    if layout != "compressed-tensors":
        assert LAYOUTS[layout].read_config(written).has_head is has_head


AUTO_ROUND = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_awq",
    "bits": 4,
    "group_size": 64,
    "sym": False,
    "extra_config": {"mlp.gate": {"bits": 16}},
}


def test_auto_rounds_awq_format_is_gemm():
    assert layout_of_config(AUTO_ROUND).name == "gemm"
    read = LAYOUTS["gemm"].read_config(AUTO_ROUND)
    assert (read.group_size, read.is_symmetric, read.not_converted) == (64, False, ("mlp.gate",))
    eight = AUTO_ROUND | {"extra_config": {"model.fc": {"bits": 8}}}
    with pytest.raises(LayoutError, match=r"extra_config expects layers of 4 bits, or 16; model\.fc has 8"):
        LAYOUTS["gemm"].read_config(eight)


@pytest.mark.parametrize(
    ("packing_format", "name"),
    [("auto_round:auto_gptq", "gptq"), ("auto_round:gptqmodel", "gptq_v2"), ("auto_round", "gptq_v2")],
)
def test_auto_rounds_gptq_formats_are_gptq(packing_format, name):
    """Where auto-round's own kernels read it (auto_round), zeros are as they are: inference/backend.py there."""
    config = AUTO_ROUND | {"packing_format": packing_format}
    assert layout_of_config(config).name == name
    assert LAYOUTS[name].missing_keys(config) == []
    read = LAYOUTS[name].read_config(config)
    assert (read.group_size, read.is_symmetric, read.not_converted) == (64, False, (r"re:mlp\.gate$",))
    with pytest.raises(LayoutError, match="'auto-round': "):
        layout_of_config(AUTO_ROUND | {"packing_format": "auto_round:fp8_static"})


SCHEME = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 64}


@pytest.mark.parametrize(
    ("layout", "config", "text"),
    [
        ("gemm", {"bits": 8}, "bits expects 4; got 8"),
        ("gemm", {"group_size": 0}, "group_size expects a positive number or -1; got 0"),
        ("gemm", {"group_size": "128"}, "group_size expects a positive number or -1; got '128'"),
        ("gemm", {"zero_point": "no"}, "zero_point expects true or false; got 'no'"),
        ("gemm", {"modules_to_not_convert": "lm_head"}, "modules_to_not_convert expects a list"),
        ("compressed-tensors", {"format": "float-quantized"}, "format expects pack-quantized; got 'float-quantized'"),
        ("compressed-tensors", {"config_groups": {}}, "config_groups expects at least one group"),
        (
            "compressed-tensors",
            {"config_groups": {"a": {"weights": SCHEME | {"num_bits": 8}}}},
            "config_groups.a.weights expects 4-bit int; got num_bits 8",
        ),
        (
            "compressed-tensors",
            {"config_groups": {"a": {"weights": SCHEME}, "b": {"weights": SCHEME | {"symmetric": True}}}},
            "config_groups expects every group to be symmetric, or none",
        ),
        (
            "compressed-tensors",
            {"config_groups": {"a": {"weights": SCHEME, "input_activations": {"num_bits": 8}}}},
            "no AWQ layout quantizes activations",
        ),
        (
            "compressed-tensors",
            {"config_groups": {"a": {"weights": SCHEME}}, "kv_cache_scheme": {"num_bits": 8}},
            "no AWQ layout quantizes the cache",
        ),
        (
            "compressed-tensors",
            {"config_groups": {"a": {"weights": SCHEME}}, "transform_config": {"config_groups": {"R1": {}}}},
            "no AWQ layout transforms weights",
        ),
        (
            "compressed-tensors",
            {"config_groups": {"a": {"weights": SCHEME}}, "sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity_config expects the format dense",
        ),
        (
            "compressed-tensors",
            {"config_groups": {"a": {"weights": SCHEME | {"actorder": "group"}}}},
            "actorder expects null",
        ),
    ],
)
def test_configurations_that_no_layout_holds(layout, config, text):
    with pytest.raises(LayoutError, match=text):
        LAYOUTS[layout].read_config(config)


def test_what_llm_compressor_adds_is_no_obstacle():
    config = {
        "config_groups": {
            "group_0": {"weights": SCHEME | {"observer": "minmax", "observer_kwargs": {}}, "targets": []}
        },
        "format": "pack-quantized",
        "ignore": ["lm_head", "model.layers.0.mlp.gate", "re:.*mlp.gate$", "re:.*visual.*"],
        "global_compression_ratio": None,
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.17.1",
    }
    read = LAYOUTS["compressed-tensors"].read_config(config)
    assert (read.group_size, read.is_symmetric) == (64, False)
    assert read.not_converted == ("model.layers.0.mlp.gate", "re:.*mlp.gate$", "visual")


def test_compressed_tensors_configuration_says_the_same():
    awq = LAYOUTS["gemm"].read_config(
        {"bits": 4, "group_size": 64, "zero_point": True, "modules_to_not_convert": ["visual", "mlp.gate"]}
    )
    written = LAYOUTS["compressed-tensors"].write_config(
        type(awq)(awq.group_size, awq.is_symmetric, awq.not_converted, {"quant_method": "awq"})
    )
    again = LAYOUTS["compressed-tensors"].read_config(written)
    assert (again.group_size, again.is_symmetric, again.not_converted) == (64, False, ("visual", "mlp.gate"))
    assert written["ignore"] == ["lm_head", "re:.*visual.*", r"re:.*mlp\.gate.*"]


# What configurations have beside what awqpack writes into them.
MORE = {
    "export": {"pack_method": "reorder"},
    "layer_quant_config": {},
    "layer_type_quant_config": {},
    "exclude": ["a"],
    "extra_config": {"a": {"bits": 4}},
    "sparsity_config": {"format": "dense"},
    "ignore": ["a"],
    "modules_to_not_convert": ["a"],
    "dynamic": {"-:a": {}},
    "packing_format": "auto_round:auto_gptq",
    "meta": {"quantizer": ["a"]},
    "quantized_layers": {"a": {}},
    "exclude_modules": ["a"],
}
KINDS = [None, 5, "x", [1], ["a"], [{}], {"a": 1}, True, 1.5, {}]


def places_in(value, keys=()):
    if keys:
        yield keys
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places_in(value[key], (*keys, key))


@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_a_value_of_any_kind_anywhere_is_read_or_refused(name):
    own = LAYOUTS[name].write_config(QuantizationConfig(128, True, None, {}))
    assert LAYOUTS[name].claims(own)
    # MLX's names no method: with keys of others it is no longer its own
    written = MORE | own if LAYOUTS[name].claims(MORE | own) else own
    for *keys, last in places_in(written):
        for value in KINDS:
            config = copy.deepcopy(written)
            holder = config
            for key in keys:
                holder = holder[key]
            holder[last] = value
            try:
                if LAYOUTS[name].claims(config):
                    read = LAYOUTS[name].read_config(config)
                    assert read.group_size is None or type(read.group_size) is int, config
                    assert type(read.is_symmetric) is bool, config
                    assert all(isinstance(entry, str) for entry in (*(read.not_converted or ()), *read.exact)), config
            except LayoutError:
                pass
