"""The language model of an `edit`: how it is loaded, and where what was edited is written."""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from .dafnet_hparams import DAFNetHyperParams, SettingsError
from .dafnet_main import EditSequence
from .files import OutputError, replacing_folder, save_tensors, write_text

REPORT = "dafnet_edits.json"


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def load_model(hparams: DAFNetHyperParams, dtype: str) -> Any:
    """The unedited model, in evaluation mode.

    Args:
        hparams: Name the model and the device.
        dtype: Name of a number format of torch, or "auto", that of the model's files.

    Raises:
        SettingsError: It cannot be loaded.
    """
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(hparams.model_name, torch_dtype=kind)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"model_name: {hparams.model_name!r} cannot be loaded ({one_line(error)})."
        ) from None
    return model.to(hparams.torch_device).eval()


class Output(ABC):
    """Where the outcome of the edits is written, and what it is."""

    @abstractmethod
    def size(self, model: Any, sequence: EditSequence) -> int:
        """Bytes that will be written, but for what is small."""

    @abstractmethod
    def try_out(self, model: Any, tok: Any) -> None:
        """Raise OutputError where transformers would refuse to save the model or tokenizer."""

    @abstractmethod
    def write(self, model: Any, tok: Any, sequence: EditSequence, report: Mapping[str, Any]) -> str:
        """Write it as a whole or not at all. Returns the sentence that says where it is.

        Raises OutputError.
        """


class ModelFolder(Output):
    """A folder with the edited model, its tokenizer and the report."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def size(self, model: Any, sequence: EditSequence) -> int:
        return sum(p.numel() * p.element_size() for p in model.parameters())

    def try_out(self, model: Any, tok: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                save_model(model, tok, Path(folder), {"nothing": torch.zeros(1)})
            except Exception as error:  # whatever stops it now would stop it after the edits
                raise OutputError(
                    f"transformers cannot save this model or its tokenizer ({one_line(error)}); "
                    "mend that, or let only the change be written, with --delta."
                ) from None

    def write(self, model: Any, tok: Any, sequence: EditSequence, report: Mapping[str, Any]) -> str:
        try:
            with replacing_folder(self.path) as folder:
                save_model(model, tok, folder)
                write_text(folder / REPORT, as_json(report))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise OutputError(f"{self.path} cannot be written ({one_line(error)}).") from None
        return f"The edited model is in {self.path}; {REPORT} there says what it holds."


class DeltaFile(Output):
    """A safetensors file with the change alone, {parameter: edited - unedited}, and a report."""

    def __init__(self, path: Path, report: Path) -> None:
        self.path, self.report = path, report

    def size(self, model: Any, sequence: EditSequence) -> int:
        return sum(4 * original.numel() for original in sequence.originals.values())

    def try_out(self, model: Any, tok: Any) -> None:
        """Transformers has no part in it."""

    def write(self, model: Any, tok: Any, sequence: EditSequence, report: Mapping[str, Any]) -> str:
        changes = {}
        for name, original in sequence.originals.items():
            edited = model.get_parameter(name).detach().cpu()
            # The difference of two numbers of 16 bits needs more.
            wide = torch.promote_types(edited.dtype, torch.float32)
            changes[name] = (edited.to(wide) - original.cpu().to(wide)).contiguous()
        try:
            write_text(self.report, as_json(report))
            save_tensors(changes, self.path, {"edits": str(sequence.count)})
        except BaseException as error:
            self.report.unlink(missing_ok=True)
            if isinstance(error, OSError):
                reason = one_line(error)
                raise OutputError(f"{self.report} cannot be written ({reason}).") from None
            raise
        return (
            f"The change of {len(changes)} parameters is in {self.path}; {self.report} says what "
            "it holds."
        )


def as_json(report: Mapping[str, Any]) -> str:
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


class _WrittenApart(GenerationConfig):
    """Stands in for the model's own while transformers saves it, and is not written."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        pass


def save_model(
    model: Any, tok: Any, folder: Path, weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """What `from_pretrained` reads, model and tokenizer.

    The generation configuration is written as it was read: transformers loads some that it refuses
    to save, such as a temperature without sampling, and it is not ours to mend.

    Args:
        model: Of transformers.
        tok: Its tokenizer.
        folder: A folder that is there.
        weights: Others than the model's.
    """
    own = getattr(model, "generation_config", None)
    try:
        model.generation_config = _WrittenApart()
        model.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
    finally:
        model.generation_config = own
    if own is not None and model.can_generate():
        own.to_json_file(folder / GENERATION_CONFIG_NAME)
    tok.save_pretrained(folder)
