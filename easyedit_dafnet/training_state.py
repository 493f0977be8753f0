"""The state of a training run on disk: an interrupted run goes on as if it had never stopped.

One file holds all of it, so that a new state takes the place of the former in one step and none
is ever half there: the tensors as safetensors, everything else as JSON in that file's metadata.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .archive import CheckpointError
from .checkpoint import fingerprint
from .dafnet_hparams import SettingsError
from .files import OutputError, save_tensors
from .language_model import Text
from .losses import TEXT_FIELDS
from .resuming import changed, conditions
from .training_folder import FORMAT, STATE, TrainingState, damaged_state, read_state

if TYPE_CHECKING:
    from .trainer import DAFNetTrainer

LOG = logging.getLogger(__name__)
# Settings that a resumed run may change: they decide when it ends and what is told of it...
FREE = {
    "archive_dtype",
    "cache_gb",
    "log_interval",
    "max_iters",
    "results_dir",
    "save_interval",
    "signal_batch_size",
    "tensorboard",
    "val_interval",
    "val_patience",
}
# ...or they change no more than rounding, which is warned of.
ROUNDING = {"device", "loss_batch_size", "model_parallel"}
# Files and folders, which may have moved: compared by their last name.
PLACES = {"archive", "model_name", "passages", "text", "tokenizer_name"}


def save_state(trainer: DAFNetTrainer, log_size: int) -> None:
    """Write the trainer's state into its `state_path`, in the place of the former one.

    log_size: bytes of the log up to this step. Raises CheckpointError when it cannot be written;
    the former state is then still there.
    """
    state = TrainingState(
        step=trainer.step,
        seconds=time.perf_counter() - trainer.started,
        log_size=log_size,
        best=trainer.best,
        validated=trainer.validated,
        waited=trainer.waited,
        curriculum=asdict(trainer.curriculum),
        warmup=trainer.warmup.state_dict(),
        random=list(trainer.random.getstate()),
        groups=trainer.unedited.groups,
        **_identity(trainer),
    )
    folder = trainer.state_path
    tensors = {name: t.detach().cpu().contiguous() for name, t in _tensors(trainer).items()}
    metadata = {"format": FORMAT, "state": json.dumps(asdict(state)), "sha256": _digest(tensors)}
    try:
        save_tensors(tensors, folder / STATE, metadata)
    except OutputError as error:
        raise CheckpointError(
            f"The training state cannot be saved: {error} Then resume from the former state."
        ) from None


def _tensors(trainer: DAFNetTrainer) -> dict[str, Tensor]:
    tensors = {f"dafnet.{name}": t for name, t in trainer.dafnet.state_dict().items()}
    for index, values in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": t for name, t in values.items()}
    if trainer.passages:  # end to end
        tensors["passages.lengths"] = torch.tensor([len(p) for p in trainer.passages])
        tensors["passages.ids"] = torch.cat([p.ids for p in trainer.passages])
        tensors["passages.labels"] = torch.cat([p.labels for p in trainer.passages])
    tensors["generator.cpu"] = torch.get_rng_state()
    if trainer.dafnet.device.type == "cuda":
        tensors["generator.cuda"] = torch.cuda.get_rng_state(trainer.dafnet.device)
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the numbers."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _identity(trainer: DAFNetTrainer) -> dict[str, dict[str, Any]]:
    """What the run is and where it runs."""
    sets = {f"train_set {name!r}": records for name, records in trainer.train_sets.items()}
    return {
        "settings": asdict(trainer.config),
        "data": {k: _data(v) for k, v in {**sets, "val_set": trainer.val_records}.items()},
        "model": fingerprint(trainer.model, trainer.modules),
        "host": conditions(trainer.dafnet.device),
    }


def _data(records: Sequence[Mapping[str, Any]]) -> str:
    """The number of records and a hash of what is read of them."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps([record.get(key) for key in TEXT_FIELDS]).encode())
    return f"{len(records)} records, SHA-256 {digest.hexdigest()[:16]}"


def restore_state(trainer: DAFNetTrainer) -> int:
    """Bring the trainer to the state in its `state_path`. Returns the log's size in bytes then.

    Raises CheckpointError or SettingsError, one sentence, when there is no state, it is damaged,
    or it is that of another run. Warns where the result may be rounded differently.
    """
    folder = trainer.state_path
    state, now = read_state(folder), _identity(trainer)
    _check_same_run(state, now, folder)
    _warn_of_rounding(state, now)
    try:
        # Copied: what is read may be mapped from the file, which is soon replaced.
        tensors = {name: t.clone() for name, t in load_file(folder / STATE).items()}
        with safe_open(folder / STATE, "pt") as file:
            expected = file.metadata().get("sha256")  # older states have none
        if expected is not None and expected != _digest(tensors):
            raise ValueError("its numbers are not those that were written")

        def part(prefix: str) -> dict[str, Tensor]:
            prefix += "."
            return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}

        trainer.dafnet.load_state_dict(part("dafnet"))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
        # The groups are this optimiser's own, so that a fused one puts `step` where it needs it.
        groups = trainer.optimizer.state_dict()["param_groups"]
        trainer.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        trainer.warmup.load_state_dict(dict(state.warmup))
        for group, rate in zip(
            trainer.optimizer.param_groups, trainer.warmup.get_last_lr(), strict=True
        ):
            group["lr"] = rate
        trainer.passages = []
        if passages := part("passages"):
            lengths = passages["lengths"].tolist()
            rows = (passages[name].split(lengths) for name in ("ids", "labels"))
            trainer.passages = [Text(*row) for row in zip(*rows, strict=True)]
        version, internal, gauss = state.random
        trainer.random.setstate((version, tuple(internal), gauss))
        torch.set_rng_state(tensors["generator.cpu"])
        if trainer.dafnet.device.type == "cuda" and "generator.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["generator.cuda"], trainer.dafnet.device)
        trainer.curriculum = replace(trainer.curriculum, **state.curriculum)
        for numbers in state.groups:
            trainer.unedited.join(numbers)
    except (SafetensorError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise damaged_state(folder, error) from None
    trainer.step, trainer.best = state.step, state.best
    trainer.validated, trainer.waited = state.validated, state.waited
    trainer.started = time.perf_counter() - state.seconds
    return state.log_size


def _check_same_run(state: TrainingState, now: Mapping[str, Any], folder: Path) -> None:
    """Raise for the first thing in which what is computed would differ."""

    def last_name(value: Any) -> Any:
        return value and Path(value).name

    free = FREE | ROUNDING
    if now["settings"]["lr_schedule"] != "constant":
        free -= {"max_iters"}  # it is where the schedule ends
    for name, value in now["settings"].items():
        if name in free or name not in state.settings:
            continue
        same = last_name if name in PLACES else lambda v: v
        if same(value) != same(state.settings[name]):
            if name == "max_iters":
                raise SettingsError(
                    f"Setting 'max_iters' is {value}, but the run in {folder} was started with "
                    f"{state.settings[name]}, where its learning rates end (`lr_schedule: cosine`),"
                    " so it cannot be made longer; resume with that, or begin anew (--fresh)."
                )
            raise SettingsError(
                f"Setting {name!r} is {value!r}, but the run in {folder} was started with "
                f"{state.settings[name]!r}; resume with that, or begin anew (--fresh)."
            )
    if now["settings"]["max_iters"] < state.step:
        raise SettingsError(
            f"Setting 'max_iters' is {now['settings']['max_iters']}, but the run in {folder} has "
            f"done {state.step} steps; resume with more, or begin anew (--fresh)."
        )
    for name in now["data"] | state.data:
        before, after = (data.get(name, "absent") for data in (state.data, now["data"]))
        if before != after:
            raise CheckpointError(
                f"{name} is not the one that the run in {folder} was started with (it was "
                f"{before}, now it is {after}); resume with the same records in the same order, "
                "or begin anew (--fresh)."
            )
    for name, norm in now["model"].items():
        if not math.isclose(norm, state.model.get(name, math.nan), rel_tol=1e-4):
            raise CheckpointError(
                f"The run in {folder} was started with another language model (the norm of {name} "
                f"was {state.model.get(name)}, now it is {norm}); resume with that, or start a "
                "new run."
            )


def _warn_of_rounding(state: TrainingState, now: Mapping[str, Any]) -> None:
    settings = {k: now["settings"][k] for k in sorted(ROUNDING - {"device"})}
    others = changed(state.settings, settings) + changed(state.host, now["host"])
    if others:
        LOG.warning(
            "The run goes on under other conditions than before (%s), so it may differ in rounding "
            "from one that was never interrupted.",
            ", ".join(others),
        )
