"""The unedited model: loaded once, and put back bit by bit after each stream of edits."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

#: Of a file of weights so many pieces are read, of so many bytes: seconds would add up otherwise.
SAMPLES, SAMPLE = 256, 16384


def model_path(name: str) -> str:
    """The folder or hub name to load; "smollm2" is the embedded model."""
    if name == "smollm2":
        from ..smollm2 import smollm2_path

        return str(smollm2_path())
    return name


def is_embedded(path: str) -> bool:
    """Whether a model's folder is called as that of the embedded model, wherever it lies."""
    from ..smollm2 import SHORT_NAME

    return re.fullmatch(rf"{SHORT_NAME}(-tf\d+)?", Path(path).name) is not None


def model_fingerprint(path: str) -> str:
    """Tells models apart: by the configuration, and size and samples of each file of weights."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    config = folder / "config.json"  # some sentence encoders have none
    digest = sha256(config.read_bytes() if config.is_file() else b"")
    for file in sorted(folder.iterdir()):
        if file.suffix in {".safetensors", ".bin"}:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as weights:
                for start in range(0, size, max(SAMPLE, size // SAMPLES)):
                    weights.seek(start)
                    digest.update(weights.read(SAMPLE))
    return digest.hexdigest()[:16]


def load_model(path: str, device: str, dtype: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=getattr(torch, dtype))
    return model.to(device).eval()


def load_tokenizer(path: str) -> Any:
    tok = AutoTokenizer.from_pretrained(path, padding_side="left")
    if tok.pad_token is None:
        tok.pad_token = tok.eos_token
    return tok


class UneditedModel:
    """Gives the unedited model again and again.

    A copy of its tensors stays in the main memory. After a stream they are written back where they
    differ; a model whose modules, hooks, names or shapes an edit has changed is loaded afresh.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load
        self._load()

    def _load(self) -> None:
        self.model = self.load()
        self.tensors = {name: t.detach().to("cpu", copy=True) for name, t in _tensors(self.model)}
        self.trainable = {name: p.requires_grad for name, p in self.model.named_parameters()}
        self.structure = _structure(self.model)

    @torch.no_grad()
    def put_back(self) -> Any:
        """The model, bit by bit as it was loaded."""
        model = self.model
        if _structure(model) != self.structure:
            del model, self.model
            gc.collect()
            self._load()
            return self.model
        for name, tensor in _tensors(model):
            saved = self.tensors[name]
            if not _same(tensor, saved):
                tensor.copy_(saved)
                if not _same(tensor, saved):
                    raise RuntimeError(f"The unedited values of {name} did not come back.")
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(self.trainable[name])
        return model.eval()


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, also those that no checkpoint holds."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _same(tensor: torch.Tensor, saved: torch.Tensor) -> bool:
    return torch.equal(tensor.detach().cpu(), saved)


def _structure(model: Any) -> Any:
    """All but the tensors' values that an edit may change: modules, attributes, hooks, settings."""
    modules = [
        (
            name,
            type(module),
            sorted(vars(module)),
            [len(hooks) for key, hooks in sorted(vars(module).items()) if key.endswith("_hooks")],
        )
        for name, module in model.named_modules()
    ]
    tensors = [(name, t.shape, t.dtype, t.device) for name, t in _tensors(model)]
    return modules, tensors, str(model.config)
