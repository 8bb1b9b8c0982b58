"""Inspects, converts, compares and dequantizes a checkpoint in Python; then does one layer by hand.

python examples/convert_checkpoint.py            # a small checkpoint with random weights
python examples/convert_checkpoint.py SRC DST    # a gemm checkpoint of yours, and a new folder
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from awqpack import checkpoint
from awqpack.layouts import LAYOUTS, quantize_layer


def small_checkpoint(folder: Path) -> Path:
    """Two layers with random weights in AutoAWQ's gemm layout: a file, and a config.json."""
    with checkpoint.Writer(folder, "gemm", config={"model_type": "llama"}) as writer:
        for seed, name in enumerate(("model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj")):
            weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(seed)).half()
            layer = LAYOUTS["gemm"].decode(quantize_layer(weight, LAYOUTS["gemm"]))
            writer.add(name, layer.codes, layer.scales, layer.zeros)
    return folder


def convert(source: Path, target: Path) -> None:
    found = checkpoint.inspect(source)
    print(f"{source.name}: {found.layout}, groups of {found.group_size}, {len(found.layers)} layers")
    assert not found.problems, found.problems

    done = checkpoint.convert(source, target, "compressed-tensors")
    print(f"{done.layers} layers from {done.source_layout} to {done.target_layout}, {done.nbytes} bytes")
    assert checkpoint.verify(source, target).is_equal

    floats = checkpoint.convert(target, f"{target}-bf16", "bfloat16")
    print(f"the ordinary model has {floats.nbytes} bytes")


def by_hand(source: Path, folder: Path) -> None:
    """One layer without the rest of a checkpoint: its tensors in, a Layer, other tensors out."""
    found = checkpoint.inspect(source)
    name = found.layers[0].name
    with safe_open(next(source.glob("*.safetensors")), "pt") as file:
        tensors = {suffix: file.get_tensor(f"{name}.{suffix}") for suffix in ("qweight", "qzeros", "scales")}
    layer = LAYOUTS[found.layout].decode(tensors, found.group_size)
    weight = layer.dequantize()
    save_file(LAYOUTS["gptq_v2"].encode(layer), folder / "gptq_v2.safetensors")
    print(f"{name}: codes {tuple(layer.codes.shape)}, weights of {weight.float().std():.2f}, and as GPTQ stores it")


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments:
            convert(*map(Path, arguments))
        else:
            convert(small_checkpoint(folder / "small-awq"), folder / "small-ct")
            by_hand(folder / "small-awq", folder)


if __name__ == "__main__":
    main(sys.argv[1:])
