"""Two processes, each with half of a packed weight: cut by output features, then by input features.

torchrun --nproc-per-node 2 examples/tensor_parallel.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist

import awqpack
from awqpack import AWQPackedTensor, AWQPacking

N, K, GROUP_SIZE = 256, 512, 128


class Quantized:
    """A packed weight, and its scales and zeros (N, G)."""

    def __init__(self, weight: AWQPackedTensor, scales: torch.Tensor, zeros: torch.Tensor) -> None:
        self.weight, self.scales, self.zeros = weight, scales, zeros

    def part(self, dim: int, rank: int, count: int) -> Quantized:
        """One of `count` equal parts of the rows (dim 0) or the columns (dim 1).

        A slice of a packed tensor is plain codes: what each process keeps is packed again. Groups must stay whole, and
        each part must be whole blocks of the packing."""
        codes, scales, zeros = (t.chunk(count, dim)[rank] for t in (self.weight, self.scales, self.zeros))
        return Quantized(AWQPackedTensor.pack(codes, self.weight.packing, self.weight.reorder), scales, zeros)

    def times(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight
        return x @ awqpack.dequantize(w.payload, self.scales, self.zeros, w.packing, w.reorder, dtype=x.dtype).t()


def whole() -> tuple[Quantized, torch.Tensor]:
    """The same in each process."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(N, K, generator=generator), torch.randn(4, K, generator=generator)
    scales, zeros = awqpack.min_max_scales(weight, GROUP_SIZE)
    payload = awqpack.quantize(weight, scales, zeros, AWQPacking.V2)
    return Quantized(AWQPackedTensor.from_payload(payload, AWQPacking.V2), scales, zeros), x


def main() -> None:
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    layer, x = whole()
    expected = layer.times(x)

    by_rows = layer.part(0, rank, count).times(x)  # each process has some output features
    gathered = [torch.empty_like(by_rows) for _ in range(count)]
    dist.all_gather(gathered, by_rows)
    torch.testing.assert_close(torch.cat(gathered, 1), expected, rtol=1e-4, atol=1e-4)

    by_columns = layer.part(1, rank, count).times(x.chunk(count, 1)[rank])  # each has a part of every sum
    dist.all_reduce(by_columns)
    torch.testing.assert_close(by_columns, expected, rtol=1e-4, atol=1e-4)

    # A packed weight travels packed when its payload is sent; as bytes, since gloo takes no int16.
    payload = layer.weight.payload.view(torch.uint8)
    if rank != 0:
        payload.zero_()
    dist.broadcast(payload, 0)
    torch.testing.assert_close(layer.times(x), expected)

    if rank == 0:
        print(f"{count} processes, each with {payload.nbytes // count} of {payload.nbytes} bytes")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
