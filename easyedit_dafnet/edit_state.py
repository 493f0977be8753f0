"""The state of a sequence of edits as a file, from which it goes on as if it had never stopped.

A safetensors file: what the sequence holds, and whatever else is to be kept with it, as JSON, whose
tensors stand beside it. The JSON is a tensor of bytes itself, as a header has a largest size.
Nothing in it is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .dafnet_main import EditSequence, Held
from .files import save_tensors
from .least_squares import Overshoot, Written
from .networks import PastEdits, Rows
from .rehearsal import Form, Kept, Rehearsal

FORMAT = "easyedit_dafnet edits/1"
CONTENT = "content"  # name of the JSON among the tensors
PARTS = {c.__name__: c for c in (Held, PastEdits, Written, Overshoot, Rehearsal, Kept, Form)}


class StateError(ValueError):
    """A file that holds no state, or a damaged one; the message says which file and why."""


def save_state(
    path: Path, sequence: EditSequence | None = None, about: Mapping[str, Any] | None = None
) -> None:
    """Write a sequence's state in one step, in the place of the former one.

    Args:
        path: The file.
        sequence: None writes a file that holds no edits yet.
        about: What is kept beside it, as JSON has it.

    Raises:
        OutputError: It cannot be written; the former one is still there.
    """
    tensors: dict[str, Tensor] = {}
    held = None if sequence is None else packed(sequence.held, tensors)
    count = 0 if sequence is None else sequence.count
    content = json.dumps({"about": dict(about or {}), "count": count, "held": held})
    tensors[CONTENT] = torch.frombuffer(bytearray(content.encode()), dtype=torch.uint8)
    save_tensors(tensors, path, {"format": FORMAT})


def is_state(path: Path) -> bool:
    """Whether a file says that it is one of these."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


class SavedState:
    """A state in a file. Its tensors are read when they are needed.

    about: what was kept beside it. count: edits in it.
    """

    def __init__(self, path: Path) -> None:
        """Raises StateError where it cannot be read."""
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                if (found := (file.metadata() or {}).get("format")) != FORMAT:
                    raise ValueError(f"its format is {found!r}, not {FORMAT!r}")
                content = json.loads(file.get_tensor(CONTENT).numpy().tobytes())
            self.about: dict[str, Any] = content["about"]
            self.count: int = content["count"]
            self._held = content["held"]
        except DAMAGED as error:
            raise self._damaged(error) from None

    def restore(self, sequence: EditSequence, model: Any) -> None:
        """Let a sequence without edits, on the unedited model, go on from this state.

        Raises StateError where the state is not one of these modules.
        """
        if self._held is None:
            return
        try:
            # Copied: mapped from the file they would lie elsewhere in memory than before.
            tensors = {name: t.clone() for name, t in load_file(self.path).items()}
            sequence.take_up(model, unpacked(self._held, tensors), self.count)
        except DAMAGED as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> StateError:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return StateError(f"{self.path} is damaged or of another version ({reason})")


DAMAGED = (
    OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError,
    RecursionError,
)  # fmt: skip


def packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON. Its tensors are put into `tensors`, under names that the JSON has."""
    match value:
        case Tensor():
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().contiguous()
            return {"tensor": name}
        case Rows():  # the room behind the rows is as large again, so that strides are, too
            return {"rows": packed(value.filled, tensors), "room": value.buffer.shape[2]}
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case Mapping():
            return {"pairs": [[key, packed(item, tensors)] for key, item in value.items()]}
        case tuple():
            return {"tuple": [packed(item, tensors) for item in value]}
        case list():
            return [packed(item, tensors) for item in value]
    if is_dataclass(value):
        names = [f.name for f in fields(value)]
        kind = type(value).__name__
        if PARTS.get(kind) is not type(value):
            raise TypeError(f"a {kind} is no part of a sequence's state")
        values = {name: packed(getattr(value, name), tensors) for name in names}
        return {"part": kind, "fields": values}
    return value


def unpacked(content: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `packed` made this JSON of."""
    match content:
        case {"tensor": name}:
            return tensors[name]
        case {"rows": name, "room": room}:
            filled = unpacked(name, tensors)
            modules, heads, count, width = filled.shape
            buffer = filled.new_empty(modules, heads, room, width)
            buffer[:, :, :count] = filled
            return Rows(buffer, count)
        case {"dtype": name}:
            dtype = getattr(torch, name)
            if not isinstance(dtype, torch.dtype):
                raise TypeError(f"{name!r} is no dtype")
            return dtype
        case {"pairs": pairs}:
            return {key: unpacked(item, tensors) for key, item in pairs}
        case {"tuple": items}:
            return tuple(unpacked(item, tensors) for item in items)
        case {"part": kind, "fields": values}:
            return PARTS[kind](**{k: unpacked(v, tensors) for k, v in values.items()})
        case list():
            return [unpacked(item, tensors) for item in content]
    return content
