"""torch.distributed.checkpoint writes through views of what it loads into: a packed local tensor takes it."""

import pytest
import torch
import torch.distributed as dist
from shared import SHAPE, assert_same, packed_tensor, torch_codes

from awqpack import AWQPackedTensor


@pytest.fixture(scope="module")
def mesh():
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def replicated(tensor, mesh):
    from torch.distributed.tensor import Replicate, distribute_tensor

    return distribute_tensor(tensor, mesh, [Replicate()])


class Weight(torch.nn.Module):
    def __init__(self, packed):
        super().__init__()
        self.weight = torch.nn.Parameter(packed, requires_grad=False)


def distributed(module, mesh):
    """distribute_module's. torch 2.10's wants a gradient of every parameter: no uint8 one passes, plain or packed."""
    from torch.distributed.tensor import distribute_module

    if torch.__version__ >= "2.11":
        return distribute_module(module, mesh)
    for refused in (module, Weight(module.weight.unpack())):
        with pytest.raises(RuntimeError, match="floating point dtype can require gradients"):
            distribute_module(refused, mesh)
    module.weight = torch.nn.Parameter(replicated(module.weight.data, mesh), requires_grad=False)
    return module


def assert_holds(dtensor, codes, payload=None):
    local = dtensor._local_tensor
    assert isinstance(local, AWQPackedTensor)
    assert_same(local.unpack(), codes)
    assert payload is None or local.payload.data_ptr() == payload.data_ptr()


@pytest.mark.parametrize("is_saved_packed", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_dcp_loads_into_a_replicated_packed_tensor(is_saved_packed, mesh, packing, tmp_path):
    import torch.distributed.checkpoint as dcp

    codes = torch_codes(SHAPE, seed=3)
    saved = AWQPackedTensor.pack(codes, *packing) if is_saved_packed else codes
    dcp.save({"w": replicated(saved, mesh)}, checkpoint_id=tmp_path / "saved")
    target = replicated(packed_tensor(packing, SHAPE, seed=4), mesh)
    payload = target._local_tensor.payload
    dcp.load({"w": target}, checkpoint_id=tmp_path / "saved")
    assert_holds(target, codes, payload)


@pytest.mark.filterwarnings("ignore")
def test_distribute_module_and_model_state_dicts(mesh, packing, tmp_path):
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    codes = torch_codes(SHAPE, seed=3)
    source = distributed(Weight(AWQPackedTensor.pack(codes, *packing)), mesh)
    target = distributed(Weight(packed_tensor(packing, SHAPE, seed=4)), mesh)
    set_model_state_dict(target, get_model_state_dict(source))
    assert_holds(target.weight, codes)


def test_writes_through_what_a_dtensor_lends(mesh, packing):
    target = replicated(packed_tensor(packing, SHAPE), mesh)
    target.to_local().copy_(torch_codes(SHAPE, seed=9))
    assert_holds(target, torch_codes(SHAPE, seed=9))
    target.to_local().detach().narrow(0, 0, SHAPE[0]).view_as(target.to_local()).fill_(3)
    assert_holds(target, torch.full(SHAPE, 3, dtype=torch.uint8))
