"""Loaders of others on converted checkpoints, and ours on theirs: GPTQModel, auto-round, ModelOpt, on the CPU."""

import copy
import json

import pytest
import torch
from checkpoints import REFERENCE_NAMES, reference
from llama import logits, write_llama, write_tokenizer

from awqpack import checkpoint

GROUP_SIZE = 32
pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def gptqmodel():
    return pytest.importorskip("gptqmodel", reason="needs the package gptqmodel")


@pytest.fixture(scope="module")
def auto_round():
    return pytest.importorskip("auto_round", reason="needs the package auto-round")


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """By whether they are symmetric: a tiny Llama as a gemm checkpoint, and the model with dequantized weights."""
    root = tmp_path_factory.mktemp("llamas")
    pairs = {yes: write_llama(root / str(yes), GROUP_SIZE, symmetric=yes) for yes in (False, True)}
    for folder, _ in pairs.values():
        write_tokenizer(folder)
    return pairs


def assert_same_model(loaded, expected):
    """Every quantized linear is bit for bit what we dequantize, in float16; the whole says about the same."""
    count = 0
    for name, module in expected.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        theirs = loaded.get_submodule(name)
        assert type(theirs) is not torch.nn.Linear
        with torch.no_grad():
            weight = theirs(torch.eye(module.in_features, dtype=torch.float16)).t()
        assert torch.equal(weight, module.weight.half()), name
        count += 1
    assert count == 14
    assert logits(expected).std() > 0.1
    torch.testing.assert_close(logits(loaded), logits(expected), rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_gptqmodel_dequantizes_gptq(name, gptqmodel):
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    layouts, group_size, expected = reference(name)
    out_features, in_features = expected["dequantized"].shape
    linear = TorchLinear(4, group_size, False, False, in_features, out_features)
    linear.load_state_dict(layouts["gptq_v2"], strict=False)
    assert torch.equal(TorchLinear.dequantize_weight(linear.eval()).t(), expected["dequantized"])


@pytest.mark.parametrize(
    ("layout", "symmetric"), [("gemm", False), ("gptq", True), ("gptq_v2", False), ("gptq_v2", True)]
)
def test_gptqmodel_loads(layout, symmetric, gptqmodel, llamas, tmp_path):
    given, model = llamas[symmetric]
    assert checkpoint.convert(given, tmp_path / "out", layout).warnings == ()
    backend = gptqmodel.BACKEND.AWQ_TORCH if layout == "gemm" else gptqmodel.BACKEND.GPTQ_TORCH
    loaded = gptqmodel.GPTQModel.load(tmp_path / "out", device="cpu", dtype=torch.float16, backend=backend)
    assert_same_model(loaded.model, model)


def test_gptqmodel_refuses_what_convert_warns_of(gptqmodel, llamas, tmp_path):
    done = checkpoint.convert(llamas[False][0], tmp_path / "out", "gptq")
    assert done.warnings == ("GPTQModel reads zeros other than 8 from gptq_v2 alone",)
    with pytest.raises(ValueError, match=r"sym=False model with format=FORMAT\.GPTQ is only supported if"):
        gptqmodel.GPTQModel.load(tmp_path / "out", device="cpu", backend=gptqmodel.BACKEND.GPTQ_TORCH)


def load_by_auto_round(folder, **config):
    """A model of transformers, whose linears are those that auto-round chooses for the CPU."""
    from transformers import AutoModelForCausalLM, AutoRoundConfig

    if config:
        config = {"quantization_config": AutoRoundConfig(**config)}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map="cpu", **config).eval()


@pytest.mark.parametrize(
    ("layout", "symmetric", "packing_format"),
    [
        ("gemm", False, "auto_round:auto_awq"),
        ("gptq", True, "auto_round:auto_gptq"),
        ("gptq_v2", False, "auto_round:gptqmodel"),
    ],
)
def test_auto_round_loads(layout, symmetric, packing_format, auto_round, llamas, tmp_path):
    """Our tensors, under its configuration."""
    given, model = llamas[symmetric]
    checkpoint.convert(given, tmp_path / "out", layout)
    path = tmp_path / "out" / "config.json"
    says = {"bits": 4, "data_type": "int", "group_size": GROUP_SIZE, "sym": symmetric}
    says |= {"packing_format": packing_format, "quant_method": "auto-round"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": says}))
    found = checkpoint.inspect(tmp_path / "out")
    assert (found.layout, found.problems) == (layout, ())
    assert_same_model(load_by_auto_round(tmp_path / "out"), model)


@pytest.mark.parametrize("symmetric", [False, True])
def test_what_auto_round_writes(symmetric, auto_round, llamas, tmp_path):
    """Round-to-nearest by auto-round: the weights that its own loader and we make of it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given, _ = llamas[symmetric]
    checkpoint.convert(given, tmp_path / "floats", "float16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "floats", dtype=torch.float16)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "floats")
    options = {"scheme": "W4A16", "group_size": GROUP_SIZE, "sym": symmetric, "device_map": "cpu"}
    quantizer = auto_round.AutoRound(model, tokenizer, iters=0, disable_opt_rtn=True, **options)
    quantizer.quantize_and_save(tmp_path / "theirs", format="auto_round")
    (folder,) = (path.parent for path in (tmp_path / "theirs").rglob("config.json"))
    found = checkpoint.inspect(folder)
    assert (found.layout, found.problems, len(found.layers)) == ("gptq" if symmetric else "gemm", (), 14)
    checkpoint.convert(folder, tmp_path / "again", "float32")
    assert not (tmp_path / "again" / "quantization_config.json").exists()
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert_same_model(load_by_auto_round(folder), expected)


def test_what_modelopt_writes(llamas, tmp_path):
    """The weights by which ModelOpt's own quantized model computes are those that we read from what it exports, bit for
    bit: it has no code that unpacks such a checkpoint again. Scales are powers of two, so that neither rounds."""
    quantization = pytest.importorskip("modelopt.torch.quantization", reason="needs the package nvidia-modelopt")
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    checkpoint.convert(llamas[True][0], tmp_path / "floats", "float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "floats").eval()
    generator = torch.Generator().manual_seed(0)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"}
    for linear in linears.values():
        weight = torch.rand(linear.weight.shape, generator=generator) * 14 - 7
        weight[:, ::GROUP_SIZE] = 7  # of each group the largest, and 7 scales
        linear.weight.data = weight * 2**-7
    config = copy.deepcopy(quantization.INT4_AWQ_CFG) | {"algorithm": "max"}  # which needs no samples
    sizes = [entry["cfg"]["block_sizes"] for entry in config["quant_cfg"] if "block_sizes" in entry.get("cfg", {})]
    for size in sizes:
        size[-1] = GROUP_SIZE
    quantization.quantize(model, config, lambda model: None)
    expected = {name: linear.weight_quantizer(linear.weight).detach().clone() for name, linear in linears.items()}
    said = logits(model)
    export_hf_checkpoint(model, export_dir=tmp_path / "theirs")
    found = checkpoint.inspect(tmp_path / "theirs")
    assert (found.layout, found.problems, len(found.layers)) == ("modelopt", (), 14)
    checkpoint.convert(tmp_path / "theirs", tmp_path / "again", "float32")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert {name: torch.equal(read.get_submodule(name).weight, weight) for name, weight in expected.items()} == (
        dict.fromkeys(expected, True)
    )
    torch.testing.assert_close(logits(read), said, rtol=1e-5, atol=1e-5)
