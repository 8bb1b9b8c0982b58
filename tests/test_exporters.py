"""What exporters make of the ops: core ATen after run_decompositions, and ONNX graphs that onnxruntime runs."""

import logging

import pytest
import torch
from models import PackedLinear
from shared import LAYOUTS, assert_same, packed_tensor, torch_codes

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


# (layout) -> op, its tensors, its other arguments
OPS = {
    "unpack": lambda layout: (torch.ops.awqpack.unpack.default, [packed_tensor(layout).payload], [*number(layout)]),
    "unpack into columns": lambda layout: (
        torch.ops.awqpack.unpack.default,
        [packed_tensor(layout).payload],
        [*number(layout), [1, 0]],
    ),
    "unpack a batch": lambda layout: (
        torch.ops.awqpack.unpack.default,
        [packed_tensor(layout, (3, 2, *SHAPE)).payload],
        [*number(layout), [3, 0, 2, 1]],
    ),
    "pack": lambda layout: (torch.ops.awqpack.pack.default, [torch_codes(SHAPE)], [*number(layout)]),
    "pack columns": lambda layout: (torch.ops.awqpack.pack.default, [torch_codes((128, 64)).t()], [*number(layout)]),
    "pack a batch": lambda layout: (torch.ops.awqpack.pack.default, [torch_codes((3, *SHAPE))], [*number(layout)]),
    "dequantize": lambda layout: (
        torch.ops.awqpack.dequantize.default,
        [packed_tensor(layout).payload, torch.rand(64, 2), torch_codes((64, 2), seed=1)],
        [*number(layout), torch.float16],
    ),
    "dequantize into columns": lambda layout: (
        torch.ops.awqpack.dequantize.default,
        [packed_tensor(layout).payload, torch.rand(1, 128)],
        [None, *number(layout), torch.float32, [1, 0]],
    ),
}


def number(layout):
    return layout.number, layout.reorder


@pytest.mark.parametrize("make", OPS.values(), ids=OPS.keys())
def test_a_decomposition_gives_what_the_op_gives(make, layout):
    op, tensors, arguments = make(layout)
    actual, expected = awqpack.decompositions()[op](*tensors, *arguments), op(*tensors, *arguments)
    assert_same(actual, expected)
    assert actual.stride() == expected.stride()


@pytest.mark.parametrize("name", ["unpack", "unpack into columns", "pack", "dequantize"])
def test_ops_become_core_aten(name):
    op, tensors, arguments = OPS[name](LAYOUTS["v2"])
    program, ops = core_aten(Function(op, *arguments), tuple(tensors))
    assert all(torch.Tag.core in target.tags for target in ops)
    assert_same(program.module()(*tensors), op(*tensors, *arguments))


def test_every_nibble_value_in_every_place(layout):
    """The highest nibble holds the sign."""
    codes = torch.arange(16, dtype=torch.uint8).repeat_interleave(64 * 128).reshape(16, *SHAPE)
    payload = awqpack.pack(codes, *layout)
    functions = awqpack.decompositions()
    assert_same(functions[torch.ops.awqpack.pack.default](codes, *number(layout)), payload)
    assert_same(functions[torch.ops.awqpack.unpack.default](payload, *number(layout)), codes)


def test_a_graph_packs_low_nibbles(layout):
    codes = torch_codes(SHAPE)
    packed = awqpack.decompositions()[torch.ops.awqpack.pack.default](codes | 0xA0, *number(layout))
    assert_same(packed, awqpack.pack(codes, *layout))


def test_a_model_with_packed_weights():
    model, x = PackedLinear(LAYOUTS["v2"]), torch.randn(3, 128)
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
    op, tensors, arguments = OPS["unpack"](LAYOUTS["v1"])
    assert_same(run_onnx(Function(op, *arguments), tuple(tensors)), op(*tensors, *arguments))


@pytest.mark.clients
@pytest.mark.parametrize(
    "name", ["unpack", "unpack into columns", "unpack a batch", "pack", "pack a batch", "dequantize"]
)
def test_onnx_gives_the_same_bits(name, layout):
    op, tensors, arguments = OPS[name](layout)
    assert_same(run_onnx(Function(op, *arguments), tuple(tensors)), op(*tensors, *arguments).contiguous())


@pytest.mark.clients
def test_onnx_runs_a_model_with_packed_weights(layout):
    model, x = PackedLinear(layout), torch.randn(3, 128)
    torch.testing.assert_close(run_onnx(model, (x,)), model(x).detach(), rtol=1e-4, atol=1e-3)
