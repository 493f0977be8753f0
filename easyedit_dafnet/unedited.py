"""What the unedited model says of a record, computed once and kept: training never changes it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from safetensors.torch import load, save
from torch import Tensor

from .language_model import LanguageModel, Text, inference_mode_of
from .losses import KINDS, TEXT_FIELDS, record_texts
from .signals import EditedModule, EditSignals, collect_signals, concatenate


@dataclass(frozen=True)
class Prepared:
    """A record as the training step needs it, on the CPU.

    texts: by the name of their loss, with `hidden`, those of locality also with
    what the unedited model predicts.
    signals: of the record's edit, one a module.
    """

    texts: dict[str, Text]
    signals: list[EditSignals]

    def tensors(self) -> dict[str, Tensor]:
        """Everything in it by name."""
        found = {
            f"text/{name}/{part}": value
            for name, text in self.texts.items()
            for part, value in vars(text).items()
            if value is not None
        }
        for m, signals in enumerate(self.signals):
            found |= {f"signals/{m}/{part}": value for part, value in vars(signals).items()}
        return found

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Prepared:
        groups: dict[str, dict[str, dict[str, Tensor]]] = {"text": {}, "signals": {}}
        for key, value in tensors.items():
            kind, name, part = key.split("/")
            groups[kind].setdefault(name, {})[part] = value
        signals = sorted(groups["signals"].items(), key=lambda item: int(item[0]))
        return cls(
            {name: Text(**parts) for name, parts in groups["text"].items()},
            [EditSignals(**parts) for _, parts in signals],
        )


def joined_signals(records: Sequence[Prepared]) -> list[EditSignals]:
    """The records' edits as one sequence, one EditSignals a module."""
    return [concatenate(parts) for parts in zip(*(r.signals for r in records), strict=True)]


class Cache:
    """Prepared records by key: in memory up to `budget` bytes, beyond it in one file in `folder`.

    The file has no name there: it is gone when the process is, however that ends.
    """

    def __init__(self, budget: float, folder: Path) -> None:
        self.budget, self.folder, self.used = budget, folder, 0
        self.kept: dict[Hashable, Prepared | tuple[int, int]] = {}  # or its place in the file
        self.file: IO[bytes] | None = None

    def __contains__(self, key: Hashable) -> bool:
        return key in self.kept

    def __getitem__(self, key: Hashable) -> Prepared:
        found = self.kept[key]
        if isinstance(found, Prepared):
            return found
        assert self.file is not None
        start, size = found
        self.file.seek(start)
        tensors = load(self.file.read(size))
        # Copied into torch's own memory: sums over other alignments may be rounded differently.
        return Prepared.of_tensors({name: t.clone() for name, t in tensors.items()})

    def __setitem__(self, key: Hashable, value: Prepared) -> None:
        tensors = value.tensors()
        size = sum(t.nbytes for t in tensors.values())
        if self.used + size <= self.budget:
            self.kept[key] = value
            self.used += size
            return
        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115, lives as long
        start = self.file.seek(0, os.SEEK_END)
        size = self.file.write(save({name: t.contiguous() for name, t in tensors.items()}))
        self.kept[key] = start, size


class Unedited:
    """The unedited model's part in training: prepares records and passages, each once.

    All the texts of a record go through the model together and alone, so that what comes out
    does not depend on which records came before: an interrupted run resumes with the same bits.
    """

    def __init__(
        self, model: LanguageModel, tok: Any, modules: Sequence[EditedModule], cache: Cache
    ) -> None:
        self.model, self.tok, self.modules, self.cache = model, tok, modules, cache

    def record(self, record: Mapping[str, Any]) -> Prepared:
        key = tuple(record.get(field) for field in TEXT_FIELDS)
        if key in self.cache:
            return self.cache[key]
        prepared = self._prepare(
            record_texts(self.tok, record, self.model.model), edit="reliability"
        )
        self.cache[key] = prepared
        return prepared

    def passage(self, text: Text) -> Text:
        key = ("passage", *text.ids.tolist())
        if key not in self.cache:
            self.cache[key] = self._prepare({"passage": text})
        return self.cache[key].texts["passage"]

    def _prepare(self, texts: dict[str, Text], edit: str | None = None) -> Prepared:
        with inference_mode_of(self.model.model):
            names = list(texts)
            found = dict(zip(names, self.model.with_hidden([texts[n] for n in names]), strict=True))
            signals = []
            if edit is not None:
                text = found[edit]
                signals = collect_signals(
                    self.model.model,
                    self.modules,
                    text.labels[None],
                    lambda: self.model.logits([text], trim=False),
                )
            for name in names:
                if KINDS[name] == "locality":
                    found[name] = self.model.with_unedited(found[name])
        return Prepared(
            {name: text.to("cpu") for name, text in found.items()},
            [s.to("cpu") for s in signals],
        )
