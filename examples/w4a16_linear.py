"""A linear layer with 4-bit weights and 16-bit activations: it holds a packed weight, and a whole model of them is
offloaded by accelerate, saved and loaded.

python examples/w4a16_linear.py
"""

from __future__ import annotations

import tempfile
from copy import deepcopy
from pathlib import Path

import accelerate
import torch
from safetensors.torch import load_model, save_model

import awqpack
from awqpack import AWQPackedTensor, AWQPacking


class W4A16Linear(torch.nn.Module):
    """y = x @ dequantized(weight).T + bias. A kernel of your own would take ``self.weight.payload``."""

    weight: AWQPackedTensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def __init__(self, linear: torch.nn.Linear, group_size: int = 128, packing: AWQPacking = AWQPacking.V1) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scales, zeros = awqpack.min_max_scales(weight, group_size)
        payload = awqpack.quantize(weight, scales, zeros, packing)
        packed = AWQPackedTensor.from_payload(payload, packing)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)  # type: ignore[assignment]
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight
        weight = awqpack.dequantize(w.payload, self.scales, self.zeros, w.packing, w.reorder, dtype=x.dtype)
        return torch.nn.functional.linear(x, weight, self.bias)


def model(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    first, second = (torch.nn.Linear(256, 256, dtype=torch.bfloat16) for _ in range(2))
    return torch.nn.Sequential(W4A16Linear(first), torch.nn.SiLU(), W4A16Linear(second, packing=AWQPacking.V2))


def main() -> None:
    net, x = model(), torch.randn(2, 256, dtype=torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    expected = net.to(device)(x.to(device)).cpu()
    net.to("cpu")
    held = sum(p.payload.nbytes for p in net.parameters() if isinstance(p, AWQPackedTensor))
    print(f"{held} bytes of packed weights")

    with tempfile.TemporaryDirectory() as folder:
        # awqpack's own file: packed tensors come back as packed tensors.
        awqpack.save_file(net.state_dict(), Path(folder, "packed.safetensors"))
        other = model(seed=1)
        other.load_state_dict(awqpack.load_file(Path(folder, "packed.safetensors")))
        assert torch.equal(other.to(device)(x.to(device)).cpu(), expected)

        # Weights rest on the CPU, or on the disk, and come to the device for as long as a layer computes.
        copy = deepcopy(other).to("cpu")
        assert torch.equal(accelerate.cpu_offload(other.to("cpu"), device)(x).cpu(), expected)
        assert torch.equal(accelerate.disk_offload(copy, folder, device)(x).cpu(), expected)

        # Other writers know plain tensors only: after store_as_payloads they get the payloads.
        another = awqpack.store_as_payloads(model(seed=2))
        save_model(awqpack.store_as_payloads(net), str(Path(folder, "model.safetensors")))
        load_model(another, str(Path(folder, "model.safetensors")))
        assert torch.equal(another.to(device)(x.to(device)).cpu(), expected)
    print(f"the same result on {device} after saving, loading and offloading")


if __name__ == "__main__":
    main()
