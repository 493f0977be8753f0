"""What the unedited model says of a record, computed once and kept: training never changes it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from .language_model import TEXTS_AT_ONCE, LanguageModel, Text, inference_mode_of
from .losses import KEPT, KINDS, TEXT_FIELDS, record_texts
from .prompts import Wording
from .records import AS_GIVEN
from .signals import EditedModule, EditSignals, collect_signals, concatenate

RECORDS_TOGETHER = 16


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
            for part, value in vars(signals).items():
                if value is not None:
                    found[f"signals/{m}/{part}"] = value
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

    Records that come up together for the first time pass the model together. How texts are
    rounded depends on their company, so a resumed run, which has to prepare them again, does so in
    the same `groups`: then it goes on with the same bits.
    records: those of the run, in an order that does not change; groups: their numbers in it.
    at_subject: edits are written where their subjects end. wording: how records are asked.
    """

    def __init__(
        self,
        model: LanguageModel,
        tok: Any,
        modules: Sequence[EditedModule],
        cache: Cache,
        records: Sequence[Mapping[str, Any]] = (),
        at_subject: bool = False,
        wording: Wording = AS_GIVEN,
    ) -> None:
        self.at_subject, self.wording = at_subject, wording
        self.model, self.tok, self.modules, self.cache = model, tok, modules, cache
        self.known: dict[Hashable, int] = {}
        self.numbered: list[Mapping[str, Any]] = []
        self.groups: list[list[int]] = []
        self.group_of: dict[int, list[int]] = {}
        for record in records:
            self._number(record)

    def _number(self, record: Mapping[str, Any]) -> int:
        key = tuple(record.get(field) for field in TEXT_FIELDS)
        if key not in self.known:
            self.known[key] = len(self.numbered)
            self.numbered.append(record)
        return self.known[key]

    def join(self, group: list[int]) -> None:
        """Let the records of these numbers pass the model together."""
        self.groups.append(group)
        self.group_of |= dict.fromkeys(group, group)

    def records(self, records: Sequence[Mapping[str, Any]]) -> list[Prepared]:
        numbers = [self._number(record) for record in records]
        fresh = [n for n in dict.fromkeys(numbers) if n not in self.group_of]
        for i in range(0, len(fresh), RECORDS_TOGETHER):
            self.join(fresh[i : i + RECORDS_TOGETHER])
        for number in numbers:
            if number not in self.cache:
                group = self.group_of[number]
                for n, prepared in zip(group, self._prepare(group), strict=True):
                    if n not in self.cache:
                        self.cache[n] = prepared
        return [self.cache[number] for number in numbers]

    def passage(self, text: Text) -> Text:
        key = ("passage", *text.ids.tolist())
        if key not in self.cache:
            with inference_mode_of(self.model.model):
                (text,) = self.model.with_unedited(self.model.with_hidden([text]))
            self.cache[key] = Prepared({"passage": text.to("cpu")}, [])
        return self.cache[key].texts["passage"]

    def _prepare(self, group: Sequence[int]) -> list[Prepared]:
        each = [
            record_texts(
                self.tok, self.numbered[n], self.model.model, self.at_subject, self.wording
            )
            for n in group
        ]
        with inference_mode_of(self.model.model):
            hidden = iter(
                self.model.with_hidden([text for texts in each for text in texts.values()])
            )
            each = [{name: next(hidden) for name in texts} for texts in each]
            signals = self._signals([texts["reliability"] for texts in each])
            kept = [name for name, kind in KINDS.items() if kind in KEPT]
            asked = [texts[name] for texts in each for name in kept if name in texts]
            unedited = iter(self.model.with_unedited(asked))
            for texts in each:
                texts |= {name: next(unedited) for name in kept if name in texts}
        return [
            Prepared({name: text.to("cpu") for name, text in texts.items()}, of_edit)
            for texts, of_edit in zip(each, signals, strict=True)
        ]

    def _signals(self, edits: Sequence[Text]) -> list[list[EditSignals]]:
        """The signals of each edit, one EditSignals a module."""
        found: list[list[EditSignals]] = []
        for pack in self.model.packs(edits, TEXTS_AT_ONCE):
            signals = collect_signals(
                self.model.model,
                self.modules,
                torch.cat([text.labels for text in pack])[None],
                partial(self.model.logits, pack, trim=False),
                [len(text) for text in pack],
                torch.cat([t.at for t in pack if t.at is not None]) if self.at_subject else None,
            )
            each = zip(*(s.to("cpu").split() for s in signals), strict=True)
            found += [list(of_edit) for of_edit in each]
        return found
