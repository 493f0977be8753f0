"""Training EasyEdit's trained methods once, on the benchmark's records with the right labels."""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset
from tqdm import tqdm

from ...bench.records import EditRecord
from ...dafnet_hparams import SettingsError
from ...files import read_object, save_tensors, write_text
from ...records import IGNORE, encode_targets

ARCHIVE, PREPARED = "archive.safetensors", "prepared.json"

HostRecord = Mapping[str, str]


def trainable(records: Sequence[EditRecord]) -> list[HostRecord]:
    """The records that have a rephrase and a locality probe, as EasyEdit's trainers need."""
    flat = [record.flat() for record in records]
    return [record for record in flat if {"rephrase_prompt", "locality_prompt"} <= record.keys()]


def in_turn(records: Sequence[HostRecord], count: int, seed: int) -> list[HostRecord]:
    """`count` records in random order; none comes again before all have come."""
    random = Random(seed)
    order: list[HostRecord] = []
    while len(order) < count:
        order += random.sample(records, len(records))
    return order[:count]


class EditBatches(Dataset[HostRecord]):
    """Records as EasyEdit's trainers read them, with the targets' own tokens as labels.

    EasyEdit's data sets tokenise a target without the space before it, and pad on the right while
    the losses read the last positions. Here the labels are the tokens that the target has in the
    text, and texts are padded on the left.
    """

    def __init__(self, records: Sequence[HostRecord], tok: Any, device: str) -> None:
        self.records, self.tok, self.device = records, tok, device

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> HostRecord:
        return self.records[index]

    def collate_gpt_fn(self, records: Sequence[HostRecord]) -> dict[str, Any]:
        def texts(key: str) -> list[str]:
            return [record[key] for record in records]

        inner = self.encode(texts("prompt"), texts("target_new"))
        locality = self.encode(texts("locality_prompt"), texts("locality_ground_truth"))
        # Of locality EasyEdit compares whole texts, and reads labels where they are predicted.
        labels = torch.full_like(locality["input_ids"], IGNORE)
        length = locality["labels"].size(1)
        labels[:, -length - 1 : -1] = locality["labels"]
        return {
            "edit_inner": inner,
            "edit_rephrase": self.encode(texts("rephrase_prompt"), texts("target_new")),
            "loc": {**locality, "labels": labels},
            "cond": inner,
            "raw": list(records),
        }

    def encode(self, prompts: Sequence[str], targets: Sequence[str]) -> dict[str, Tensor]:
        """input_ids and attention_mask [n, length]; labels [n, longest target], -100 before."""
        batch = encode_targets(self.tok, prompts, targets)
        lengths = batch.attention_mask.sum(1).tolist()
        ids = [row[:length] for row, length in zip(batch.input_ids, lengths, strict=True)]
        encoded = {
            "input_ids": _pad_left(ids, self.tok.pad_token_id or 0),
            "attention_mask": _pad_left([torch.ones_like(row) for row in ids], 0),
            "labels": _pad_left([row[row != IGNORE] for row in batch.labels], IGNORE),
        }
        return {name: value.to(self.device) for name, value in encoded.items()}


def _pad_left(rows: Sequence[Tensor], value: int) -> Tensor:
    """[n, longest]"""
    longest = max(len(row) for row in rows)
    return torch.stack([pad(row, (longest - len(row), 0), value=value) for row in rows])


def train(config: Any, records: Sequence[HostRecord], tok: Any) -> dict[str, Tensor]:
    """The tensors that EasyEdit's EditTrainer learns, one step for `config.batch_size` records.

    config: the host's training settings. They are changed so that the trainer takes each record
    once, validates nothing and writes nothing: its own archives are pickles.
    """
    steps = len(records) // config.batch_size
    config.archive, config.max_epochs = None, None
    config.max_iters = steps + 1  # the trainer ends one step before
    config.val_interval = config.log_interval = steps + 1
    config.debug, config.silent = True, True
    config.save = config.final_eval = config.eval_only = False
    data = EditBatches(records, tok, config.device)
    trainer_class = importlib.import_module("easyeditor.trainer.EditTrainer").EditTrainer
    with torch.random.fork_rng(), without_hook_warnings():
        torch.manual_seed(config.seed)
        trainer = trainer_class(config, data, data)
        freeze(trainer.model.model, config.inner_params)
        with tqdm(trainer.train_loader, desc=f"training {config.alg}", unit="step") as loader:
            trainer.train_loader = loader
            trainer.run()
    return {k: v for k, v in trainer.model.state_dict().items() if isinstance(v, Tensor)}


def freeze(model: torch.nn.Module, but: Sequence[str]) -> None:
    """Keep the gradient to these parameters: it then ends at the lowest of them.

    Raises SettingsError when the model does not have them in this order.
    """
    if (order := [name for name, _ in model.named_parameters() if name in but]) != list(but):
        raise SettingsError(
            "Setting 'inner_params' must name parameters of the language model in the model's own "
            f"order, since EasyEdit pairs them with learned step sizes so: {order}."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in but)


@contextmanager
def without_hook_warnings() -> Iterator[None]:
    """EasyEdit reads the gradients of the edited layers' outputs, which it may: their inputs, of
    which torch warns, need none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        yield


@dataclass(frozen=True)
class Archive:
    """What a training leaves in a method's folder: tensors, and how they came about.

    fingerprint: of all that decides the tensors; with another one they are worthless.
    """

    folder: Path
    fingerprint: str

    def note(self) -> dict[str, Any]:
        """How the tensors here came about; empty when there are none, or none whole."""
        note = self.folder / PREPARED
        return read_object(note) if note.is_file() else {}

    def is_ready(self) -> bool:
        return self.note().get("fingerprint") == self.fingerprint

    def write(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """The tensors first, the note last: where it is, both are whole."""
        (self.folder / PREPARED).unlink(missing_ok=True)
        plain = {name: t.detach().cpu().clone() for name, t in tensors.items()}
        save_tensors(plain, self.folder / ARCHIVE)
        content = {"fingerprint": self.fingerprint, **note}
        write_text(self.folder / PREPARED, json.dumps(content, indent=2) + "\n")

    def read(self) -> dict[str, Tensor]:
        return load_file(self.folder / ARCHIVE)


def fingerprint(*parts: Any) -> str:
    """A short name for values that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
