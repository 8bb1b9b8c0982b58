"""Under accelerate, which rebuilds parameters as ``type(p)(tensor, requires_grad=...)``, with ``**p.__dict__`` too, and
tells ties by ``data_ptr()``: every way of placing a model gives what the model gave."""

import copy
import logging

import pytest
import torch
from models import PackedLinear
from shared import CUDA, assert_same

from awqpack import AWQPackedTensor


@pytest.fixture(scope="module", autouse=True)
def accelerate():
    """Imported when a test here runs; its warnings say that weights are on meta, as they are to be."""
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    return pytest.importorskip("accelerate", reason="needs the package accelerate")


class Watched(PackedLinear):
    """Remembers the weights that it computed with: accelerate takes them away again."""

    seen = ()

    def forward(self, x):
        Watched.seen += (self.weight,)
        return super().forward(x)


class Net(torch.nn.Module):
    """Packed parameters and buffers around a plain layer; tied, two of the three weights are one parameter."""

    def __init__(self, packing, is_tied):
        super().__init__()
        torch.manual_seed(0)
        self.how = packing, is_tied
        self.first = Watched(packing, seed=1)
        self.second = Watched(packing, seed=2)
        self.third = Watched(packing, seed=3)
        self.between = torch.nn.Linear(64, 128)
        if is_tied:
            self.second.weight = self.first.weight

    def forward(self, x):
        return self.third(self.between(self.second(self.between(self.first(x)))))


def emptied(accelerate, net):
    """A net of the same kind, made while accelerate moves all parameters to meta."""
    with accelerate.init_empty_weights():
        return Net(*net.how)


def saved(net, folder):
    torch.save(net.state_dict(), folder / "pytorch_model.bin")
    return str(folder / "pytorch_model.bin")


def set_one_by_one(accelerate, net, device):
    empty = emptied(accelerate, net)
    for name, tensor in net.state_dict().items():
        accelerate.utils.set_module_tensor_to_device(empty, name, device, value=tensor)
    return empty


# (accelerate, net on the CPU, device to run on, a folder) -> a net that gives the same
WAYS = {
    "cpu_offload": lambda a, net, device, _: a.cpu_offload(net, device),
    "cpu_offload, buffers too": lambda a, net, device, _: a.cpu_offload(net, device, offload_buffers=True),
    "disk_offload": lambda a, net, device, folder: a.disk_offload(net, folder, device),
    "dispatch_model": lambda a, net, device, _: a.dispatch_model(net, {"": device}, force_hooks=True),
    "dispatch_model, a layer on a disk": lambda a, net, device, folder: a.dispatch_model(
        net,
        {"first": device, "between": device, "second": "disk", "third": device},
        main_device=device,
        offload_dir=folder,
    ),
    "load_checkpoint_and_dispatch": lambda a, net, device, folder: a.load_checkpoint_and_dispatch(
        emptied(a, net), saved(net, folder), device_map={"": device}
    ),
    "set_module_tensor_to_device": lambda a, net, device, _: set_one_by_one(a, net, device),
}


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def net(request, packing):
    return Net(packing, request.param)


def assert_gives_the_same(placed, net, device):
    """Twice, as weights come and go; with weights that are packed as they were, on the device that runs."""
    x = torch.randn(3, 128, device=device)
    expected = copy.deepcopy(net).to(device)(x)
    Watched.seen = ()
    for _ in range(2):
        assert torch.equal(placed(x), expected)
    originals = [net.first.weight, net.second.weight, net.third.weight] * 2
    for weight, original in zip(Watched.seen, originals, strict=True):
        assert isinstance(weight, torch.nn.Parameter)
        assert weight.device.type == device
        assert_same(weight.detach().offload("cpu"), original.detach().offload("cpu"))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_placed_net_gives_the_same(way, net, device, accelerate, tmp_path):
    is_tied = net.second.weight is net.first.weight
    if device == "cuda" and is_tied and way is WAYS["dispatch_model, a layer on a disk"]:
        pytest.skip("accelerate makes a parameter of the class on the GPU from the codes on the disk: a TypeError")
    assert_gives_the_same(way(accelerate, copy.deepcopy(net), device, tmp_path), net, device)


@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload"])
@pytest.mark.parametrize("device", [CUDA])
def test_a_net_on_a_gpu_is_offloaded(way, net, device, accelerate, tmp_path):
    """What leaves a GPU are codes: they are packed again when they come back."""
    net = net.to(device)
    assert_gives_the_same(WAYS[way](accelerate, copy.deepcopy(net), device, tmp_path), net, device)


def test_ties_stay_ties(net, device, accelerate):
    placed = accelerate.dispatch_model(copy.deepcopy(net), {"": device}, force_hooks=True)
    is_tied = net.second.weight is net.first.weight
    assert (placed.second.weight is placed.first.weight) is is_tied
    assert (placed.second.weight.data_ptr() == placed.first.weight.data_ptr()) is is_tied
    assert placed.third.weight.data_ptr() != placed.first.weight.data_ptr()


def test_a_buffer_on_a_disk_comes_back_as_codes(net, accelerate, tmp_path):
    """accelerate keeps codes there, and asks nobody before it puts them into the module."""
    zeros = net.first.zeros.unpack()
    placed = accelerate.disk_offload(net, tmp_path, "cpu", offload_buffers=True).first
    placed._hf_hook.pre_forward(placed, torch.ones(1))
    assert_same(placed.zeros, zeros)


def test_a_device_map_counts_bytes_when_told(net, accelerate):
    """It counts uint8 codes, twice what is held, unless it is told which tensors are of four bits."""
    from accelerate.utils import CustomDtype, compute_module_sizes

    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    packed = {name: CustomDtype.INT4 for name, tensor in tensors.items() if isinstance(tensor, AWQPackedTensor)}
    held = sum(getattr(tensor, "payload", tensor).nbytes for tensor in tensors.values())
    assert compute_module_sizes(net, special_dtypes=packed)[""] == held
    assert compute_module_sizes(net)[""] == held + sum(tensors[name].payload.nbytes for name in packed)
