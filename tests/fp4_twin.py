"""4-bit floats for tests: random layers, what they stand for, nibble by nibble, and how configurations name them."""

import json

import torch
from safetensors.torch import save_file

from awqpack.layouts import FLOAT_LAYOUTS

VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
NAMES = [name for name in FLOAT_LAYOUTS if name != "mxfp4"]  # layers with tensors of their own
GROUP = {"mxfp4-pack-quantized": 32, "nvfp4-pack-quantized": 16, "modelopt-nvfp4": 16}
FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def random_tensors(name, n=24, k=128, seed=0, exponents=(100, 140)):
    """A layer of random bytes, which are all codes; scales of every kind there is."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=generator)
    shape = (n, k // GROUP[name])
    if name == "mxfp4-pack-quantized":
        scales = torch.randint(*exponents, shape, generator=generator).to(torch.uint8)
        return {"weight_packed": codes, "weight_scale": scales}
    scales = torch.randint(0, 0x7F, shape, dtype=torch.uint8, generator=generator).view(torch.float8_e4m3fn)
    if name == "modelopt-nvfp4":
        one = torch.tensor(2.7e-4)
        return {"weight": codes, "weight_scale": scales, "weight_scale_2": one, "input_scale": one * 3}
    one = torch.tensor([3711.25])
    return {"weight_packed": codes, "weight_scale": scales, "weight_global_scale": one, "input_global_scale": one / 3}


def obvious(name, tensors, dtype):
    """Nibble by nibble: the value that a code stands for, times its scale in float32, rounded once."""
    packed = tensors.get("weight_packed", tensors.get("weight"))
    values = torch.tensor([*VALUES, *(-value for value in VALUES)], dtype=torch.float32)
    values[8] = -0.0
    codes = torch.stack([packed & 15, packed >> 4], 2).flatten(1)
    scales = tensors["weight_scale"]
    if name == "mxfp4-pack-quantized":
        scales = torch.tensor([[2.0 ** (int(e) - 127) for e in row] for row in scales], dtype=torch.float32)
    elif name == "modelopt-nvfp4":
        scales = scales.float() * tensors["weight_scale_2"]
    else:
        scales = scales.float() / tensors["weight_global_scale"]
    return (values[codes.long()] * scales.repeat_interleave(GROUP[name], 1)).to(dtype)


def scheme(name):
    is_mx = name.startswith("mx")
    weights = {"num_bits": 4, "type": "float", "symmetric": True, "dynamic": False, "group_size": GROUP[name]}
    weights |= {
        "strategy": "group" if is_mx else "tensor_group",
        "scale_dtype": "torch.uint8" if is_mx else "torch.float8_e4m3fn",
    }
    activations = weights | {"dynamic": True if is_mx else "local"}
    return {"targets": ["Linear"], "format": name, "weights": weights, "input_activations": activations}


def quantization_config(name):
    if name == "modelopt-nvfp4":
        return {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", "*visual*"]}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "config_groups": {"group_0": scheme(name)},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


def write(path, name, layers, more=None, **changes):
    path.mkdir()
    tensors = {f"{layer}.{key}": value for layer, of in layers.items() for key, value in of.items()}
    save_file(tensors | (more or {}), path / "model.safetensors", metadata={"format": "pt"})
    config = {"torch_dtype": "float32", "quantization_config": quantization_config(name) | changes}
    (path / "config.json").write_text(json.dumps(config))
    return path
