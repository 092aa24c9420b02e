"""Tiny random models of every architecture and RoPE kind, made with transformers.

Weights are random but not degenerate: norms vary, biases are not zero, so that a swapped tensor or
a forgotten bias changes the logits. Used by test_models.py; run as a script to write all of them:

    python tests/python/tiny_models.py FOLDER
"""

import sys
from pathlib import Path

import torch
import transformers

VOCAB = 320
BASE = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


def _rope(kind, **parameters):
    return {"rope_theta": 10000.0, "rope_type": kind, **parameters}


# name -> (config class, overrides)
SPECS = {
    "llama": (transformers.LlamaConfig, {}),
    "llama-tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "llama-mha": (transformers.LlamaConfig, {"num_key_value_heads": 4}),
    "llama-mqa": (transformers.LlamaConfig, {"num_key_value_heads": 1}),
    "llama-head-dim": (transformers.LlamaConfig, {"head_dim": 24}),
    "llama-biases": (transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": (
        transformers.LlamaConfig,
        {"rope_parameters": _rope("linear", factor=4.0)},
    ),
    "llama-dynamic": (
        transformers.LlamaConfig,
        {"max_position_embeddings": 64, "rope_parameters": _rope("dynamic", factor=2.0)},
    ),
    "llama-llama3": (
        transformers.LlamaConfig,
        {
            "rope_parameters": _rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            )
        },
    ),
    "llama-yarn": (
        transformers.LlamaConfig,
        {"rope_parameters": _rope("yarn", factor=4.0, original_max_position_embeddings=64)},
    ),
    "mistral": (transformers.MistralConfig, {"sliding_window": None}),
    "mistral-window": (transformers.MistralConfig, {"sliding_window": 37}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen2-window": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 21, "max_window_layers": 1},
    ),
    "qwen2-yarn": (
        transformers.Qwen2Config,
        {"rope_parameters": _rope("yarn", factor=2.0, original_max_position_embeddings=128)},
    ),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 32}),
    "qwen3-tied": (transformers.Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
}


def build(name):
    """The model in fp32, eager attention, evaluation mode."""
    config_class, overrides = SPECS[name]
    config = config_class(**{**BASE, **overrides})
    torch.manual_seed(sum(name.encode()))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.copy_(1.0 + 0.3 * torch.randn_like(parameter))
            elif parameter_name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.15 * torch.randn_like(parameter))
    model.tie_weights()
    return model


def save(model, folder, shards=1):
    """Writes an HF folder; shards > 1 splits it into about that many files."""
    total = sum(p.numel() * 4 for p in model.parameters())
    size = f"{total // shards // 1000 + 1}KB" if shards > 1 else "5GB"
    model.save_pretrained(folder, max_shard_size=size)


def main():
    root = Path(sys.argv[1])
    for name in SPECS:
        save(build(name), root / name)
        print(name)


if __name__ == "__main__":
    main()
