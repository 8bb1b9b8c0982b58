"""Small AWQ checkpoints for tests: the reference layers, random layers, and folders of them in any layout."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from awqpack.layouts import LAYOUTS, Layer, QuantizationConfig

REFERENCE_FILES = sorted((Path(__file__).parent / "data" / "layers").glob("*.safetensors"))
REFERENCE_NAMES = [path.stem.removeprefix("layer_") for path in REFERENCE_FILES]
LAYOUT_NAMES = list(LAYOUTS)
# Layouts that hold those layers: GPTQ's first version has no place for zeros of 0, ModelOpt for any zero but 8.
REFERENCE_LAYOUTS = [name for name in LAYOUT_NAMES if name not in ("gptq", "modelopt")]
ZEROS = {"gptq": range(1, 16), "modelopt": range(8, 9)}  # that a layout holds, where these are not all


@cache
def reference(name):
    """Tensors by layout, group size and the file's own tensors, of a layer that those projects wrote."""
    path = REFERENCE_FILES[REFERENCE_NAMES.index(name)]
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        group_size = int(file.metadata()["group_size"])
    layouts = {}
    for layout in ("gemm", "gemv", "gemv_fast", "compressed-tensors"):
        layouts[layout] = {k[len(layout) + 1 :]: v for k, v in tensors.items() if k.startswith(layout + ".")}
        if "bias" in tensors:
            layouts[layout]["bias"] = tensors["bias"]
    # llm-awq's tensors are gemv_fast's under another name (design.md section 8)
    llm_awq = dict(layouts["gemv_fast"])
    llm_awq["scaled_zeros"] = llm_awq.pop("qzeros")
    layouts["llm-awq"] = llm_awq
    # obvious twins of what no file here has: mlx's and Quark's differ from these by a sign, a name or a turn
    scaled = -(tensors["scales"].float() * tensors["zeros"].float())
    layouts["mlx"] = {
        "weight": layouts["gemv"]["qweight"].view(torch.uint32),
        "biases": scaled.to(tensors["scales"].dtype),
        "scales": tensors["scales"],
    }
    names = {"qweight": "weight", "qzeros": "weight_zero_point", "scales": "weight_scale", "bias": "bias"}
    layouts["quark"] = {names[k]: v for k, v in layouts["gemm"].items()}
    flipped = torch.tensor(0x88888888 - (1 << 32), dtype=torch.int32)
    layouts["quark-int4"] = {k: v ^ flipped if v.dtype == torch.int32 else v for k, v in layouts["quark"].items()}
    if "bias" in tensors:
        layouts["mlx"]["bias"] = tensors["bias"]
    layouts["gptq_v2"] = {k[len("gptq_v2.") :]: v for k, v in tensors.items() if k.startswith("gptq_v2.")}
    if "bias" in tensors:
        layouts["gptq_v2"]["bias"] = tensors["bias"]
    return layouts, group_size, tensors


# Zeros of a reference layer that a layout holds, where these are not all of them.
ZEROS_OF = {"gptq": "none of 0", "modelopt": "all 8"}


def reference_layer(name, zeros):
    """A reference layer with its zeros as they are, or with others."""
    _, group_size, tensors = reference(name)
    changed = {"as they are": tensors["zeros"], "none of 0": tensors["zeros"].clamp(min=1), "all 8": None}[zeros]
    return Layer(tensors["codes"], tensors["scales"], changed, group_size, tensors.get("bias"))


def write_reference(folder, layout, name, zeros):
    """A file with a reference layer: its own project's tensors, or a layer with other zeros."""
    layouts, _, _ = reference(name)
    tensors = layouts[layout] if zeros == "as they are" else LAYOUTS[layout].encode(reference_layer(name, zeros))
    path = Path(folder) / f"{layout}.safetensors"
    save_file({f"model.fc.{k}": v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
    return path


def random_layer(n, k, group_size=128, *, dtype=torch.float16, bias=False, symmetric=False, seed=0, layouts=()):
    """A layer of random codes, scales and zeros; only of zeros that these layouts hold."""
    rng = np.random.default_rng([seed, n, k])
    group_size = k if group_size == -1 else group_size
    groups = k // group_size
    held = [8] if symmetric else sorted(set(range(16)).intersection(*(ZEROS.get(x, range(16)) for x in layouts)))
    zeros = rng.choice(held, (n, groups))
    return Layer(
        codes=torch.from_numpy(rng.integers(0, 16, (n, k), dtype=np.uint8)),
        scales=torch.from_numpy(rng.uniform(1e-3, 2e-2, (n, groups))).to(dtype),
        zeros=torch.from_numpy(zeros.astype(np.uint8)),
        group_size=group_size,
        bias=torch.from_numpy(rng.normal(size=n)).to(dtype) if bias else None,
    )


def some_layers(*layouts):
    """Shapes of real models, which these layouts hold: N no multiple of 64, biases, experts."""
    return {
        "model.layers.0.self_attn.q_proj": random_layer(72, 256, bias=True, layouts=layouts),
        "model.layers.0.self_attn.o_proj": random_layer(256, 128, seed=1, layouts=layouts),
        "model.layers.0.mlp.experts.0.up_proj": random_layer(64, 256, seed=2, layouts=layouts),
        "model.layers.0.mlp.experts.1.up_proj": random_layer(64, 256, seed=3, layouts=layouts),
        "model.layers.1.mlp.down_proj": random_layer(256, 384, seed=4, layouts=layouts),
    }


def some_tensors():
    """What a model has beside its quantized layers: embeddings, norms, a vision tower, dtypes of all kinds."""
    generator = torch.Generator().manual_seed(1)
    return {
        "model.embed_tokens.weight": torch.randn(32, 256, generator=generator).half(),
        "model.layers.0.input_layernorm.weight": torch.ones(256, dtype=torch.bfloat16),
        "visual.blocks.0.qkv.weight": torch.randn(96, 32, generator=generator),
        "visual.blocks.0.qkv.bias": torch.randn(96, generator=generator),
        "model.rotary.inv_freq": torch.arange(4, dtype=torch.float64),
        "act.scales": torch.ones(8).half(),  # AutoAWQ's ScaledActivation, no quantized layer
        "counter": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "fp8": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "flags": torch.tensor([True, False]),
    }


def quantization_config(layout, group_size=128, symmetric=False, not_converted=("visual",)):
    written = LAYOUTS[layout].write_config(
        QuantizationConfig(group_size, symmetric, not_converted, {"quant_method": "elsewhere"})
    )
    # AutoAWQ has models without zeros, too
    return written | {"zero_point": False} if symmetric and "zero_point" in written else written


def layer_tensors(layout, name, layer, symmetric=False):
    tensors = LAYOUTS[layout].encode(layer)
    if symmetric and not LAYOUTS[layout].stores_symmetric_zeros:
        tensors.pop(LAYOUTS[layout].names.get("zeros"), None)
    return {f"{name}.{suffix}": tensor.contiguous() for suffix, tensor in tensors.items()}


def stacked(tensors):
    """With the same tensor of all experts as one, as mlx-lm has them."""
    found = {}
    for name, tensor in tensors.items():
        found.setdefault(re.sub(r"experts\.\d+", "switch_mlp", name), []).append(tensor)
    return {name: torch.stack(of) if "switch_mlp" in name else of[0] for name, of in found.items()}


def write_checkpoint(
    path, layout, layers=None, tensors=None, *, shards=2, group_size=128, symmetric=False, config=True, **more
):
    """A folder as transformers saves one, with its tensors dealt out to shards so that layers are cut apart."""
    path = Path(path)
    path.mkdir()
    content = dict(some_tensors() if tensors is None else tensors)
    own = {}
    for name, layer in (some_layers(layout) if layers is None else layers).items():
        own |= layer_tensors(layout, name, layer, symmetric)
    content |= stacked(own) if layout == "mlx" else own
    names = sorted(content)
    files = ["model.safetensors"]
    if shards > 1:
        files = [f"model-{i:05}-of-{shards:05}.safetensors" for i in range(1, shards + 1)]
    dealt = {file: {name: content[name] for name in names[i::shards]} for i, file in enumerate(files)}
    for file, part in dealt.items():
        save_file(part, path / file, metadata={"format": "pt", "note": "kept"})
    if shards > 1:
        weight_map = dict(sorted((name, file) for file, part in dealt.items() for name in part))
        index = {
            "metadata": {"total_parameters": 7, "total_size": sum(t.nbytes for t in content.values())},
            "weight_map": weight_map,
        }
        (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    if config:
        content = {"architectures": ["LlamaForCausalLM"], "hidden_size": 256, "name": "ä"}
        content["quantization_config"] = quantization_config(layout, group_size, symmetric) | more
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (path / "config.json").write_text(text, encoding="utf-8")
    (path / "tokenizer.json").write_text('{"a": 1}')
    (path / "extra").mkdir()
    (path / "extra" / "notes.txt").write_text("kept")
    return path


def contents(path):
    """Every file below a folder, by its relative name."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(Path(path).rglob("*")) if file.is_file()}


def leftovers(folder):
    """Hidden names that a conversion into this folder may have left."""
    return [entry.name for entry in Path(folder).iterdir() if entry.name.startswith(".")]
