"""Writers and readers of others, which know no packed tensor: safetensors, the Hub, accelerate, transformers, DCP.

A packed tensor is refused by name; after awqpack.store_as_payloads they save the payloads, and load them again.
"""

import copy
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from models import PackedLinear
from safetensors.torch import load_model, save_file, save_model
from shared import PACKINGS, assert_same
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from awqpack import AWQPackedTensor, AWQPacking, store_as_payloads

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled:UserWarning", "ignore:Ignoring pin_memory flag:UserWarning"
)


class Net(torch.nn.Module):
    """Packed parameters and buffers; two packed weights are one, and two plain ones."""

    def __init__(self, seed=0, packing=PACKINGS["v2"]):
        super().__init__()
        torch.manual_seed(seed)
        self.first = PackedLinear(packing, seed=10 * seed)
        self.second = PackedLinear(packing, seed=10 * seed + 1)
        self.third = PackedLinear(packing, seed=10 * seed + 2)
        self.second.weight = self.first.weight
        self.embed, self.head = torch.nn.Embedding(8, 8), torch.nn.Linear(8, 8, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.third(self.second(self.first(x).repeat(1, 2)).repeat(1, 2))


def assert_equal_nets(actual, expected):
    for name, tensor in [*expected.named_parameters(remove_duplicate=False), *expected.named_buffers()]:
        at, _, last = name.rpartition(".")
        assert_same(getattr(actual.get_submodule(at), last).detach(), tensor.detach())
    assert actual.second.weight is actual.first.weight
    assert actual.head.weight is actual.embed.weight


# --- without store_as_payloads ---

WRITERS = {
    "safetensors.save_file": lambda net, folder: save_file(net.state_dict(), folder / "m.safetensors"),
    "safetensors.save_model": lambda net, folder: save_model(net, str(folder / "m.safetensors")),
    "Accelerator.save_model": lambda net, folder: accelerator().save_model(net, folder),
    "Accelerator.save_state": lambda net, folder: saved_state(net, folder),
}


def accelerator():
    accelerate = pytest.importorskip("accelerate", reason="needs the package accelerate")
    return accelerate.Accelerator(cpu=True)


def saved_state(net, folder):
    keeper = accelerator()
    keeper.prepare(net)
    keeper.save_state(folder)
    return keeper


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_writers_are_told_what_to_call(write, tmp_path):
    with pytest.raises(
        RuntimeError, match=r"AWQPackedTensor.*awqpack\.save_file.*awqpack\.store_as_payloads\(module\)"
    ):
        write(Net(), tmp_path)


def test_the_hub_shards_by_the_bytes_that_are_held(packing):
    hub = pytest.importorskip("huggingface_hub.serialization._torch", reason="needs the package huggingface_hub")
    packed = PackedLinear(packing).weight
    assert hub.get_torch_storage_size(packed) == packed.payload.nbytes


# --- with it: (net, another, a folder), which leaves the other equal to the net ---


def by_save_model(net, other, folder):
    save_model(net, str(folder / "m.safetensors"))
    assert load_model(other, str(folder / "m.safetensors")) == (set(), [])


def by_accelerator_model(net, other, folder):
    accelerator().save_model(net, folder)
    load_model(other, folder / "model.safetensors")


def by_accelerator_state(net, other, folder):
    saved_state(net, folder)
    keeper = accelerator()
    keeper.prepare(other)
    keeper.load_state(folder)


def by_dcp(net, other, folder):
    dcp.save(net.state_dict(), checkpoint_id=folder)
    state = other.state_dict()
    dcp.load(state, checkpoint_id=folder)
    other.load_state_dict(state)


def by_dcp_helpers(net, other, folder):
    dcp.save(get_model_state_dict(net), checkpoint_id=folder)
    state = get_model_state_dict(other)
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(other, state)


ROUND_TRIPS = {
    "safetensors.save_model": by_save_model,
    "Accelerator.save_model": by_accelerator_model,
    "Accelerator.save_state": by_accelerator_state,
    "dcp.save": by_dcp,
    "dcp.save, get_model_state_dict": by_dcp_helpers,
}


@pytest.mark.parametrize("round_trip", ROUND_TRIPS.values(), ids=ROUND_TRIPS.keys())
def test_payloads_are_written_and_read(round_trip, packing, tmp_path):
    net, other = store_as_payloads(Net(1, packing)), store_as_payloads(Net(2, packing))
    round_trip(net, other, tmp_path)
    assert_equal_nets(other, net)


def test_a_model_of_the_hub(tmp_path):
    class OfTheHub(Net, pytest.importorskip("huggingface_hub").PyTorchModelHubMixin):
        def __init__(self):
            super().__init__(seed=1)
            store_as_payloads(self)

    net = OfTheHub()
    net.third.weight.fill_(3)
    net.save_pretrained(tmp_path)
    assert_equal_nets(OfTheHub.from_pretrained(tmp_path), net)


# --- a group of one process: what async_save stages, what compressed-tensors shares between processes ---


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("is_stored", [False, True], ids=["packed", "payloads"])
def test_async_save(is_stored, packing, group, tmp_path):
    """As dcp.save does, it writes the codes of packed tensors, and payloads as they are."""
    net, other = Net(1, packing), Net(2, packing)
    if is_stored:
        net, other = store_as_payloads(net), store_as_payloads(other)
    dcp.async_save(net.state_dict(), checkpoint_id=tmp_path).result()
    state = other.state_dict()
    dcp.load(state, checkpoint_id=tmp_path)
    other.load_state_dict(state)
    assert_equal_nets(other, net)


@pytest.mark.skipif(torch.__version__.startswith("2.11."), reason="torch 2.11's stagers save once, plain tensors too")
@pytest.mark.parametrize("use_shared_memory", [False, True])
def test_a_second_async_save_has_the_new_codes(use_shared_memory, packing, group, tmp_path):
    """Stagers keep their memory from one save to the next."""
    packed = AWQPackedTensor.pack(torch.full((64, 128), 3, dtype=torch.uint8), *packing)
    is_cuda = torch.cuda.is_available()
    options = dcp.staging.StagingOptions(is_cuda, use_shared_memory, is_cuda, is_cuda)
    stager = dcp.staging.DefaultStager(options)
    for value in (3, 9):
        packed.fill_(value)
        folder = tempfile.mkdtemp(dir=tmp_path)
        dcp.async_save({"w": packed}, checkpoint_id=folder, async_stager=stager).result()
        state = {"w": torch.zeros(64, 128, dtype=torch.uint8)}
        dcp.load(state, checkpoint_id=folder)
        assert bool((state["w"] == value).all())
    stager.close()


@pytest.mark.parametrize("is_grouped", [False, True])
def test_compressed_tensors_offloading(is_grouped, packing, device, request):
    """It compares addresses, copies attributes, and in a group shares the payload's memory."""
    offload = pytest.importorskip("compressed_tensors.offload", reason="needs the package compressed-tensors")
    if is_grouped:
        request.getfixturevalue("group")
    net = PackedLinear(packing)
    x = torch.randn(3, 128, device=device)
    expected = copy.deepcopy(net).to(device)(x)
    offload.set_onload_device(net, torch.device(device))
    for _ in range(2):
        assert torch.equal(net(x), expected)
    assert isinstance(net.weight, AWQPackedTensor)
    assert net.weight.payload.device.type == device


# --- transformers: a Llama whose linears are packed ---


@pytest.fixture(scope="module")
def llama_class():
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")

    class PackedLlama(transformers.LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            for layer in self.model.layers:
                for module in (layer.self_attn, layer.mlp):
                    for name, linear in list(module.named_children()):
                        if isinstance(linear, torch.nn.Linear):
                            setattr(module, name, SmallLinear(linear.in_features, linear.out_features))
            store_as_payloads(self)

    return PackedLlama


class SmallLinear(torch.nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        codes = torch.zeros(out_features, in_features, dtype=torch.uint8)
        self.weight = torch.nn.Parameter(AWQPackedTensor.pack(codes, AWQPacking.V2), requires_grad=False)
        self.scales = torch.nn.Parameter(torch.ones(out_features, 1))

    def forward(self, x):
        return x @ ((self.weight.unpack().to(x.dtype) - 8) * self.scales).t()


def make_llama(llama_class, seed=0):
    torch.manual_seed(seed)
    config = llama_class.config_class(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype="float32",
    )
    model = llama_class(config)
    for module in model.modules():
        if isinstance(module, SmallLinear):
            module.weight.copy_(torch.randint(0, 16, module.weight.shape, dtype=torch.uint8))
            module.scales.data.uniform_(0.001, 0.01)
    return model.eval()


def assert_equal_llamas(actual, expected):
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        logits = expected(tokens).logits
        assert logits.std() > 1e-2
        assert torch.equal(actual(tokens).logits, logits)
    for name, parameter in expected.named_parameters():
        loaded = dict(actual.named_parameters())[name]
        assert isinstance(loaded, torch.nn.Parameter)
        assert_same(loaded.detach(), parameter.detach())


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
@pytest.mark.parametrize("device_map", [None, "cpu"])
def test_save_pretrained_and_from_pretrained(shard, device_map, llama_class, tmp_path):
    if device_map is not None:
        pytest.importorskip("accelerate", reason="needs the package accelerate")
    model = make_llama(llama_class)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shard == "20KB"
    loaded, info = llama_class.from_pretrained(tmp_path, device_map=device_map, output_loading_info=True)
    assert not any(info.values())
    assert_equal_llamas(loaded.eval(), model)
    loaded.save_pretrained(tmp_path / "again")
    assert_equal_llamas(llama_class.from_pretrained(tmp_path / "again").eval(), model)


@pytest.mark.clients
def test_a_trainer_resumes_from_its_checkpoint(llama_class, tmp_path):
    import transformers

    rows = [{name: torch.randint(0, 128, (16,)) for name in ("input_ids", "labels")} for _ in range(16)]

    def trained(model, **how):
        arguments = transformers.TrainingArguments(
            tmp_path,
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=2,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        transformers.Trainer(model, arguments, train_dataset=rows).train(**how)
        return model.eval()

    once = trained(make_llama(llama_class))
    resumed = trained(make_llama(llama_class, seed=1), resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal_llamas(resumed, once)
