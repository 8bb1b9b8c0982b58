"""What exporters make of the ops: core ATen after run_decompositions, and ONNX graphs that onnxruntime runs."""

import logging

import pytest
import torch
from models import PackedLinear
from shared import PACKINGS, assert_same, packed_tensor, torch_codes

import awqpack

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
SHAPE = (64, 128)


def core_aten(model, arguments):
    """The exported program without awqpack's ops, and the ops that it has."""
    table = torch.export.default_decompositions()
    table.update(awqpack.decompositions())
    program = torch.export.export(model, arguments).run_decompositions(table)
    return program, {node.target for node in program.graph.nodes if node.op == "call_function"}


class Function(torch.nn.Module):
    """One op, as a model that exporters take."""

    def __init__(self, op, *arguments):
        super().__init__()
        self.op, self.arguments = op, arguments

    def forward(self, *tensors):
        return self.op(*tensors, *self.arguments)


# (packing) -> op, its tensors, its other arguments
OPS = {
    "unpack": lambda packing: (torch.ops.awqpack.unpack.default, [packed_tensor(packing).payload], [*number(packing)]),
    "unpack into columns": lambda packing: (
        torch.ops.awqpack.unpack.default,
        [packed_tensor(packing).payload],
        [*number(packing), [1, 0]],
    ),
    "unpack a batch": lambda packing: (
        torch.ops.awqpack.unpack.default,
        [packed_tensor(packing, (3, 2, *SHAPE)).payload],
        [*number(packing), [3, 0, 2, 1]],
    ),
    "pack": lambda packing: (torch.ops.awqpack.pack.default, [torch_codes(SHAPE)], [*number(packing)]),
    "pack columns": lambda packing: (torch.ops.awqpack.pack.default, [torch_codes((128, 64)).t()], [*number(packing)]),
    "pack a batch": lambda packing: (torch.ops.awqpack.pack.default, [torch_codes((3, *SHAPE))], [*number(packing)]),
    "dequantize": lambda packing: (
        torch.ops.awqpack.dequantize.default,
        [packed_tensor(packing).payload, torch.rand(64, 2), torch_codes((64, 2), seed=1)],
        [*number(packing), torch.float16],
    ),
    "dequantize into columns": lambda packing: (
        torch.ops.awqpack.dequantize.default,
        [packed_tensor(packing).payload, torch.rand(1, 128)],
        [None, *number(packing), torch.float32, [1, 0]],
    ),
}


def number(packing):
    return packing.number, packing.reorder


@pytest.mark.parametrize("make", OPS.values(), ids=OPS.keys())
def test_a_decomposition_gives_what_the_op_gives(make, packing):
    op, tensors, arguments = make(packing)
    actual, expected = awqpack.decompositions()[op](*tensors, *arguments), op(*tensors, *arguments)
    assert_same(actual, expected)
    assert actual.stride() == expected.stride()


@pytest.mark.parametrize("name", ["unpack", "unpack into columns", "pack", "dequantize"])
def test_ops_become_core_aten(name):
    op, tensors, arguments = OPS[name](PACKINGS["v2"])
    program, ops = core_aten(Function(op, *arguments), tuple(tensors))
    assert all(torch.Tag.core in target.tags for target in ops)
    assert_same(program.module()(*tensors), op(*tensors, *arguments))


def test_every_nibble_value_in_every_place(packing):
    """The highest nibble holds the sign."""
    codes = torch.arange(16, dtype=torch.uint8).repeat_interleave(64 * 128).reshape(16, *SHAPE)
    payload = awqpack.pack(codes, *packing)
    functions = awqpack.decompositions()
    assert_same(functions[torch.ops.awqpack.pack.default](codes, *number(packing)), payload)
    assert_same(functions[torch.ops.awqpack.unpack.default](payload, *number(packing)), codes)


def test_a_graph_packs_low_nibbles(packing):
    codes = torch_codes(SHAPE)
    packed = awqpack.decompositions()[torch.ops.awqpack.pack.default](codes | 0xA0, *number(packing))
    assert_same(packed, awqpack.pack(codes, *packing))


def test_a_model_with_packed_weights():
    model, x = PackedLinear(PACKINGS["v2"]), torch.randn(3, 128)
    program, ops = core_aten(model, (x,))
    assert not any(target.namespace == "awqpack" for target in ops)
    torch.testing.assert_close(program.module()(x), model(x))


# --- ONNX ---


def run_onnx(model, arguments):
    runtime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    pytest.importorskip("onnxscript", reason="needs the package onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(core_aten(model.eval(), arguments)[0], dynamo=True, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {tensor.name: argument.numpy() for tensor, argument in zip(session.get_inputs(), arguments, strict=True)}
    return torch.from_numpy(session.run(None, given)[0])


def test_onnx_unpacks():
    op, tensors, arguments = OPS["unpack"](PACKINGS["v1"])
    assert_same(run_onnx(Function(op, *arguments), tuple(tensors)), op(*tensors, *arguments))


@pytest.mark.clients
@pytest.mark.parametrize(
    "name", ["unpack", "unpack into columns", "unpack a batch", "pack", "pack a batch", "dequantize"]
)
def test_onnx_gives_the_same_bits(name, packing):
    op, tensors, arguments = OPS[name](packing)
    assert_same(run_onnx(Function(op, *arguments), tuple(tensors)), op(*tensors, *arguments).contiguous())


@pytest.mark.clients
def test_onnx_runs_a_model_with_packed_weights(packing):
    model, x = PackedLinear(packing), torch.randn(3, 128)
    torch.testing.assert_close(run_onnx(model, (x,)), model(x).detach(), rtol=1e-4, atol=1e-3)
