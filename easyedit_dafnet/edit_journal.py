"""The journal of an `edit`: a file beside its output, from which an interrupted one goes on.

It holds the state of the edits so far, and of what run it is. It is written every so often, in one
step, so that a kill or a power cut leaves the last one; when the output is there, it goes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import load_dafnet
from .dafnet_hparams import DAFNetHyperParams
from .dafnet_main import EditSequence
from .edit_state import SavedState, is_state, save_state
from .files import check_file
from .resuming import changed, conditions

LOG = logging.getLogger(__name__)

SECONDS = 60.0  # between two states, at least, ...
SHARE = 0.05  # ... and this much of all time goes into writing them, at most
# What the settings name is compared by its content; the others do not change the weights.
NOT_COMPARED = {
    "model_name", "tokenizer_name", "archive", "device", "model_parallel", "fp16", "batch_size",
    "max_length", "model_class", "tokenizer_class",
}  # fmt: skip
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class JournalError(ValueError):
    """A journal that does not fit the command; the message says what to do."""


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Tells apart tensors that differ in name, type, shape or, but for their order, in bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        bits = tensor.detach().contiguous().view(INTEGERS[tensor.element_size()])
        total = bits.sum(dtype=torch.int64).item()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {total}\n".encode())
    return digest.hexdigest()


def identity(
    hparams: DAFNetHyperParams, model: Any, requests: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What decides the weights that a run ends with. The model is the unedited one."""
    settings = {k: v for k, v in asdict(hparams).items() if k not in NOT_COMPARED}
    facts = json.dumps(list(requests), sort_keys=True, default=str).encode()
    device = model.get_parameter(f"{hparams.inner_params[0]}.weight").device
    return {
        "settings": settings,
        "facts": f"{len(requests)} facts, SHA-256 {hashlib.sha256(facts).hexdigest()[:16]}",
        "archive": checksum(load_dafnet(str(hparams.archive), device).state_dict()),
        "model": checksum(dict(model.named_parameters())),
        "host": conditions(device),
    }


class Journal:
    """The file `OUTPUT.journal`.

    done: how many of the requests are worked off. kept: whatever else the run keeps, as JSON has
    it. Both are written and read with the state. saved: `done` of the state in the file.
    """

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f"{output.name}.journal")
        self.done = self.saved = 0
        self.kept: dict[str, Any] = {}
        self._former: SavedState | None = None
        self._identity: dict[str, Any] = {}
        self._written, self._cost = 0.0, 0.0

    def open(self, resume: bool, fresh: bool) -> None:
        """Look at what is there. Nothing is written.

        Args:
            resume: Go on from it.
            fresh: Give it up.

        Raises:
            JournalError, StateError or OutputError: That cannot be done.
        """
        if not self.path.exists():
            check_file(self.path)  # or a link to nothing is there
            if resume:
                raise JournalError(
                    f"There is nothing to resume: {self.path} is not there. Leave out --resume."
                )
        elif not is_state(self.path):
            raise JournalError(
                f"{self.path} is no journal of edits, or a damaged one; move it away, as the new "
                "one would take its place."
            )
        elif not fresh:
            state = SavedState(self.path)
            if resume:
                self._former = state
            elif done := state.about["done"]:
                of = state.about["run"]["facts"].partition(",")[0]
                raise JournalError(
                    f"{self.path} holds the first {done} edits of an interrupted run of {of}; go "
                    "on with --resume, or begin anew, without them, with --fresh."
                )

    def start(self, run: Mapping[str, Any], sequence: EditSequence, model: Any) -> None:
        """Bring sequence and model to the state to go on from, or begin a new journal.

        Args:
            run: Its identity.
            sequence: One without edits.
            model: The unedited one.

        Raises:
            JournalError: The state is that of another run.
            StateError, OutputError: It cannot be read, or the new one cannot be written.
        """
        self._identity, self._written = dict(run), time.monotonic()
        if self._former is None:
            save_state(self.path, None, self._about())
            return
        about = self._former.about
        self._check_same(about["run"])
        self._former.restore(sequence, model)
        self.done = self.saved = about["done"]
        self.kept = about["kept"]
        self._former = None

    @property
    def conditions(self) -> dict[str, Any]:
        """Versions and whatever else decides how numbers are rounded here."""
        return dict(self._identity["host"])

    def _about(self) -> dict[str, Any]:
        return {"run": self._identity, "done": self.done, "kept": self.kept}

    def _check_same(self, before: Mapping[str, Any]) -> None:
        now = self._identity
        for name, value in now["settings"].items():
            if before["settings"].get(name) != value:
                raise JournalError(
                    f"Setting {name!r} is {value!r}, but the run in {self.path} was started with "
                    f"{before['settings'].get(name)!r}; resume with that, or begin with --fresh."
                )
        others = {
            "facts": f"other facts (it had {before['facts']}; these are {now['facts']})",
            "archive": "another archive",
            "model": "another language model, or the same in another number format",
        }
        for name, what in others.items():
            if before[name] != now[name]:
                raise JournalError(
                    f"The run in {self.path} was started with {what}; resume with those it had, "
                    "or begin with --fresh."
                )
        if different := changed(before["host"], now["host"]):
            LOG.warning(
                "The edits go on under other conditions than before (%s), so the weights may "
                "differ in rounding from those of a run that was never interrupted.",
                ", ".join(different),
            )

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._written >= max(SECONDS, self._cost / SHARE)

    def save(self, sequence: EditSequence) -> None:
        """Write what there is. Raises OutputError; the former state is then still there."""
        start = time.monotonic()
        save_state(self.path, sequence, self._about())
        self.saved, self._written = self.done, time.monotonic()
        self._cost = self._written - start

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
