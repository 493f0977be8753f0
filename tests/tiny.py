"""Tiny random language models with a real byte-level BPE tokenizer, as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
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
