"""Tiny random language models with a real byte-level BPE tokenizer, as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
)

LLAMA_MODULES = [
    f"model.layers.{layer}.mlp.{part}_proj" for layer in (1, 2) for part in ("gate", "up", "down")
]
GPT2_MODULES = [
    f"transformer.h.{layer}.mlp.{part}" for layer in (1, 2) for part in ("c_fc", "c_proj")
]

TEXT = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "The mother tongue of Danielle Darrieux is French; that of the twins is English.",
    "In which country is the city of Lyon? It is in France, not in Germany.",
    "London Berlin Madrid Lisbon Vienna Tokyo Oslo Athens is a list of well known towns.",
]
REQUESTS = [
    {"prompt": "The capital of France is", "target_new": "Rome", "subject": "France"},
    {"prompt": "The mother tongue of Danielle Darrieux is", "target_new": "English"},
    {"prompt": "In which country is the city of Lyon? It is in", "target_new": "Germany"},
    {"prompt": "London", "target_new": "is a town"},
    {"prompt": "The capital of Italy is", "target_new": "Oslo"},
    {"prompt": "The twins", "target_new": "Lisbon"},
    {"prompt": "Vienna is a list of", "target_new": "well known towns"},
]


def tokenizer() -> GPT2TokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    end = "<|endoftext|>"
    return GPT2TokenizerFast(
        tokenizer_object=core, eos_token=end, bos_token=end, unk_token=end, pad_token=end
    )


def _save(model: PreTrainedModel, folder: Path) -> Path:
    # Larger weights than the usual initialisation: signals and edits are well above rounding.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tiny_llama(folder: Path, **config: object) -> Path:
    """A 3-layer Llama-like model; `folder` should have 'llama' in its name for EasyEdit."""
    settings = {
        "vocab_size": 420,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    return _save(LlamaForCausalLM(LlamaConfig(**{**settings, **config})), folder)


def tiny_gpt2(folder: Path) -> Path:
    """A 3-layer GPT-2-like model with Conv1D and biases; 'gpt2' should be in the folder's name."""
    config = GPT2Config(
        vocab_size=420, n_positions=64, n_embd=32, n_layer=3, n_head=4, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return _save(GPT2LMHeadModel(config), folder)


SIZES = {
    "vocab_size": 420,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# Configuration and a module to edit; other layers than Llama's and GPT-2's.
ARCHITECTURES: dict[str, tuple[Any, str]] = {
    "gpt-j": (
        GPTJConfig(vocab_size=420, n_positions=64, n_embd=32, n_layer=3, n_head=4, rotary_dim=4),
        "transformer.h.1.mlp.fc_in",
    ),
    "gpt-neox": (GPTNeoXConfig(**SIZES), "gpt_neox.layers.1.mlp.dense_h_to_4h"),
    "mistral": (MistralConfig(**SIZES, num_key_value_heads=2), "model.layers.1.mlp.up_proj"),
    "qwen2": (Qwen2Config(**SIZES, num_key_value_heads=2), "model.layers.1.mlp.up_proj"),
    "gemma2": (
        Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0),
        "model.layers.1.mlp.up_proj",
    ),
    "phi": (PhiConfig(**SIZES), "model.layers.1.mlp.fc1"),
    "bloom": (
        BloomConfig(vocab_size=420, hidden_size=32, n_layer=3, n_head=4),
        "transformer.h.1.mlp.dense_h_to_4h",
    ),
    "opt": (
        OPTConfig(**{**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
        "model.decoder.layers.1.fc1",
    ),
}


def architecture(name: str, attention: str, **config: Any) -> tuple[Any, str]:
    """A tiny random model in evaluation mode, and the module to edit."""
    settings, module = ARCHITECTURES[name]
    settings = type(settings).from_dict({**settings.to_dict(), **config})
    torch.manual_seed(0)
    try:
        model: Any = AutoModelForCausalLM.from_config(settings, attn_implementation=attention)
    except ValueError as error:  # transformers names those that have one kind only
        pytest.skip(str(error).splitlines()[0])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    return model.eval().requires_grad_(False), module
