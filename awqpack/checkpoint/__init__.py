"""AWQ checkpoints on disk: inspect one, convert it to another layout, verify that two hold the same,
quantize a model in floats.

    from awqpack import checkpoint
    print(checkpoint.inspect("model-awq").layout)
    checkpoint.convert("model-awq", "model-gemv-fast", "gemv_fast")
    assert checkpoint.verify("model-awq", "model-gemv-fast").is_equal
"""

from .comparison import Difference
from .convert import Conversion, convert
from .errors import CheckpointError
from .inspect import Inspection, LayerInfo, inspect
from .new_checkpoint import Writer
from .packed_file import PackedFile, PackedInfo, inspect_packed
from .progress import Progress
from .quantize import Quantization, quantize
from .source import Checkpoint
from .verify import Verification, verify

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Conversion",
    "Difference",
    "Inspection",
    "LayerInfo",
    "PackedFile",
    "PackedInfo",
    "Progress",
    "Quantization",
    "Verification",
    "Writer",
    "convert",
    "inspect",
    "inspect_packed",
    "quantize",
    "verify",
]
