"""A sharded gemm checkpoint of a Llama's shape with random codes, for benchmarks and for tests that need size."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

GROUP_SIZE = 128
_QUANTIZATION = {
    "bits": 4,
    "group_size": GROUP_SIZE,
    "modules_to_not_convert": None,
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}


def gemm_layer(out_features: int, in_features: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The tensors of one gemm layer. Every bit pattern is a valid payload; zeros are odd: GPTQ has no place for 0."""
    n, k, groups = out_features, in_features, in_features // GROUP_SIZE

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, generator=generator)

    scales = torch.rand(groups, n, generator=generator) * 0.02 + 1e-3
    zeros = words(groups, n // 8) | 0x11111111
    return {"qweight": words(k, n // 8), "qzeros": zeros, "scales": scales.half()}


def write_checkpoint(folder: Path, size: int, hidden: int = 4096, inner: int = 14336, shard_size: int = 1 << 29) -> int:
    """Writes at least `size` bytes of linear layers and their norms into a new folder; returns the bytes of tensors."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shards: list[dict[str, torch.Tensor]] = [{}]
    total, block = 0, 0
    while total < size:
        for module, (n, k) in shapes.items():
            name = f"model.layers.{block}.{module}"
            layer = {f"{name}.{key}": value for key, value in gemm_layer(n, k, generator).items()}
            nbytes = sum(t.nbytes for t in (shards[-1] | layer).values())
            if shards[-1] and nbytes > shard_size:
                shards.append({})
            shards[-1] |= layer
            total += sum(t.nbytes for t in layer.values())
        shards[-1][f"model.layers.{block}.input_layernorm.weight"] = torch.ones(hidden, dtype=torch.float16)
        total += 2 * hidden
        block += 1
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in sorted(shard)}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "quantization_config": _QUANTIZATION}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return total


def main() -> None:
    """Makes a checkpoint to try the commands with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--size-mib", type=int, default=64, help="at least this large (default 64)")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists already")
    total = write_checkpoint(options.folder, options.size_mib << 20, hidden=1024, inner=2816, shard_size=1 << 25)
    print(f"{options.folder}: {total} bytes of tensors")


if __name__ == "__main__":
    main()
