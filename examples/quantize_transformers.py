"""Quantizes a transformers model layer by layer into a checkpoint that transformers loads on the CPU.

python examples/quantize_transformers.py             # a tiny Llama with random weights
python examples/quantize_transformers.py MODEL OUT   # a folder with a model of yours, and a new folder
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import awqpack

GROUP_SIZE = 32


def tiny_model(folder: Path) -> Path:
    """A model to try this with, saved as any other."""
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    ).save_pretrained(folder)
    return folder


def own_scales(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros with the least squared error among some clipped ranges. A search of your own goes here."""
    best: tuple[float, torch.Tensor, torch.Tensor] | None = None
    for ratio in (1.0, 0.95, 0.9, 0.85):
        scales, zeros = awqpack.min_max_scales(weight * ratio, GROUP_SIZE)
        payload = awqpack.quantize(weight, scales, zeros)
        error = (awqpack.dequantize(payload, scales, zeros) - weight).square().sum().item()
        if best is None or error < best[0]:
            best = error, scales, zeros
    assert best is not None
    return best[1:]


def quantize(source: Path, target: Path) -> None:
    """One layer is in memory at a time beside the model; the target appears when it is whole."""
    model = AutoModelForCausalLM.from_pretrained(source)
    with awqpack.checkpoint.Writer(target, "compressed-tensors") as writer, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                writer.add(name, module.weight, *own_scales(module.weight))
        writer.copy(source)  # config.json, tokenizer, embeddings, norms, ...


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        source, target = Path(temporary, "model"), Path(temporary, "model-w4a16")
        if arguments:
            source, target = map(Path, arguments)
        else:
            tiny_model(source)
        quantize(source, target)
        found = awqpack.checkpoint.inspect(target)
        print(f"{len(found.layers)} layers in {found.layout}, groups of {found.group_size}")
        if not arguments:
            compare(source, target)


def compare(source: Path, target: Path) -> None:
    """transformers loads what was written, and it computes what the dequantized weights do."""
    awqpack.checkpoint.convert(target, f"{target}-floats", "float32")
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        logits, loaded, floats = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits
            for folder in (source, target, f"{target}-floats")
        )
    torch.testing.assert_close(loaded, floats, rtol=1e-4, atol=1e-5)
    print(f"logits differ from the original's by {(loaded - logits).norm() / logits.norm():.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
