"""A tiny Llama, quantized, as transformers saves models."""

import json

import torch
from safetensors.torch import load_file, save_file

from awqpack import dequantize, min_max_scales, quantize, unpack
from awqpack.layouts import LAYOUTS, Layer


def write_llama(folder, group_size, *, symmetric=False):
    """Writes a checkpoint of several files; returns its folder, and the model with dequantized weights in float32."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype="float32",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            weight = module.weight.detach()
            scales, zeros = min_max_scales(weight, group_size, symmetric=symmetric, dtype=torch.float16)
            payload = quantize(weight, scales, zeros)
            layers[name] = Layer(unpack(payload), scales, zeros, group_size)
            module.weight.data = dequantize(payload, scales.float(), zeros)
    model.save_pretrained(folder, max_shard_size="200KB")
    _replace_weights(folder, layers, group_size, symmetric)
    return folder, model


def _replace_weights(folder, layers, group_size, symmetric):
    """Puts gemm tensors in the place of the weights, in the files, the index and the configuration."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for name, layer in layers.items():
        file = folder / index["weight_map"].pop(f"{name}.weight")
        tensors = load_file(file)
        del tensors[f"{name}.weight"]
        for suffix, tensor in LAYOUTS["gemm"].encode(layer).items():
            tensors[f"{name}.{suffix}"] = tensor
            index["weight_map"][f"{name}.{suffix}"] = file.name
        save_file(tensors, file, metadata={"format": "pt"})
    files = folder.glob("*.safetensors")
    index["metadata"]["total_size"] = sum(t.nbytes for file in files for t in load_file(file).values())
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "bits": 4,
        "group_size": group_size,
        "modules_to_not_convert": None,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": not symmetric,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_tokenizer(folder):
    """One that loaders ask for: a word for each of the model's."""
    import tokenizers
    import transformers

    words = tokenizers.models.WordLevel({f"t{i}": i for i in range(128)}, unk_token="t0")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), eos_token="t1")
    tokenizer.save_pretrained(folder)


def logits(model):
    """What it says of some tokens."""
    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12)).logits.float()
