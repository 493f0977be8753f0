"""The unedited model and DAFNet as methods of the benchmark."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ..dafnet_hparams import (
    OF_LEAST_SQUARES,
    DAFNetHyperParams,
    DAFNetTrainingHparams,
    SettingsError,
    nearest,
)
from ..dafnet_main import STATE, apply_dafnet_to_model, forget_edits
from ..files import read_object, write_text
from ..trainer import DAFNetTrainer
from .materials import digest
from .method import Method, Need, Request, Workbench
from .unedited_model import is_embedded

S = TypeVar("S", DAFNetHyperParams, DAFNetTrainingHparams)


class Unedited(Method):
    """Does nothing: what every method starts from."""

    name: ClassVar[str] = "unedited"
    expects: ClassVar[Mapping[str, float]] = {}

    def edit(self, requests: Sequence[Request]) -> None:
        pass


class DAFNet(Method):
    """DAFNet in its published form, with a trained network or one that the benchmark trains.

    settings: `hparams`, editing settings (default: those shipped for the embedded model, with their
    network); `training`, training settings, to train one on the benchmark's training records in
    place of the shipped one. Further names overrule single settings of the training, or else of
    editing.
    """

    name: ClassVar[str] = "DAFNet"
    #: Editing settings for the embedded model.
    shipped: ClassVar[str] = "DAFNet/smollm2-135m"
    #: Those of a network that is trained here; None: all are the training's.
    of_trained: ClassVar[str | None] = None

    def __init__(self, bench: Workbench, settings: Mapping[str, Any]) -> None:
        super().__init__(bench, settings)
        given = dict(self.settings)
        editing = given.pop("hparams", None)
        own = {"model_name": bench.model_name, "device": bench.device}
        self.training: DAFNetTrainingHparams | None = None
        if "training" in given:
            editing = editing or self.of_trained
            trained = DAFNetTrainingHparams.from_hparams(given.pop("training"))
            own |= {"tokenizer_name": bench.model_name, "results_dir": str(bench.folder)}
            self.training = _overruled(trained, given, own)
            shared = {f.name for f in fields(DAFNetTrainingHparams)} - {"tokenizer_name"}
            values = {
                f.name: getattr(self.training, f.name)
                for f in fields(DAFNetHyperParams)
                if f.name in shared
            }
            values["archive"] = str(self._archive())
            if editing is None:
                self.hparams = DAFNetHyperParams(**values)
            else:
                self.hparams = replace(DAFNetHyperParams.from_hparams(editing), **values)
        else:
            if not (editing or "archive" in given or is_embedded(bench.model_name)):
                raise SettingsError(
                    f"{self.name} comes with settings and a network for the embedded model, "
                    f"smollm2, and none for {Path(bench.model_name).name}: train a network for it, "
                    "and name editing settings in a suite's file, as in {name: "
                    f"{self.name}, settings: {{hparams: FILE}}}}."
                )
            edited = DAFNetHyperParams.from_hparams(editing or self.shipped)
            self.hparams = _overruled(edited, given, own | {"tokenizer_name": bench.model_name})

    def _archive(self) -> Path:
        return Path(self.bench.folder) / "models" / "DAFNet" / Path(self.bench.model_name).name

    def _marker(self) -> Path:
        return Path(self.bench.folder) / "trained.json"

    def _is_trained(self) -> bool:
        """Whether training with these settings has ended; its best network is there long before."""
        if self.training is None or not self._marker().is_file():
            return False
        return bool(self._learnt().items() <= read_object(self._marker()).items())

    def _learnt(self) -> dict[str, Any]:
        """What a training rests on, as JSON gives it back."""
        assert self.training is not None
        records = {"records": digest(list(self.bench.train))}
        learnt: dict[str, Any] = json.loads(json.dumps(_of_the_method(self.training) | records))
        return learnt

    @property
    def effective_settings(self) -> Mapping[str, Any]:
        settings = _of_the_method(self.hparams)
        if self.training is None:
            return settings
        return settings | {"training": _of_the_method(self.training)}

    def needs(self) -> list[Need]:
        if self.training is None:
            archive = Path(self.hparams.archive or "")
            if (archive / "config.json").is_file():
                return [Need("trained network", "ready", archive.name)]
            return [Need("trained network", "missing", "name its folder as `archive`")]
        if self._is_trained():
            return [Need("trained network", "ready", "trained here")]
        if not self.bench.train:
            return [Need("training records", "missing", "name a file with --train")]
        steps = self.training.max_iters
        return [Need("trained network", "to prepare", f"trained here, {steps} steps")]

    def prepare(self) -> None:
        if self.training is None or self._is_trained():
            return
        records = [record.flat() for record in self.bench.train]
        held_out = min(200, max(1, len(records) // 20))
        trainer = DAFNetTrainer(
            config=self.training, train_set=records[held_out:], val_set=records[:held_out]
        )
        trainer.run(resume=trainer.state_path.is_dir())
        seconds = {"seconds": time.perf_counter() - trainer.started}  # interrupted parts included
        write_text(self._marker(), json.dumps(self._learnt() | seconds, indent=1) + "\n")

    def preparation_seconds(self) -> float | None:
        """The training's, wherever it was done."""
        if self.training is not None:
            return read_object(self._marker()).get("seconds")
        card = read_object(Path(self.hparams.archive or "") / "config.json")
        minutes = (card.get("training") or {}).get("minutes")
        return None if minutes is None else 60.0 * minutes

    def edit(self, requests: Sequence[Request]) -> None:
        self.model, _ = apply_dafnet_to_model(self.model, self.bench.tok, requests, self.hparams)

    def state_bytes(self) -> int:
        """The original weights and their changes, and what the networks keep of each edit."""
        sequence = getattr(self.model, STATE, None)
        if sequence is None:
            return 0
        return sequence.constant_bytes + sequence.count * sequence.bytes_per_edit

    def stop(self) -> None:
        forget_edits(self.model)
        super().stop()


class DAFNetStrong(DAFNet):
    """DAFNet's strong form: written in early layers where the subject ends, fused by least squares.

    settings: as of DAFNet; a network that is trained here is edited with by the shipped settings of
    this form.
    """

    name: ClassVar[str] = "DAFNet-strong"
    shipped: ClassVar[str] = "DAFNet/smollm2-135m-strong"
    of_trained: ClassVar[str | None] = shipped


def _of_the_method(hparams: DAFNetHyperParams | DAFNetTrainingHparams) -> dict[str, Any]:
    """The settings that count: without those that are this machine's or change nothing as they are.

    Of the archive its name.
    """
    left_out = {"model_name", "tokenizer_name", "device", "results_dir", "cache_gb"}
    if hparams.fusion == "mean":
        left_out |= {"fusion", *OF_LEAST_SQUARES}
    if isinstance(hparams, DAFNetTrainingHparams):
        left_out |= {"lr_schedule"} if hparams.lr_schedule == "constant" else set()
        if not hparams.same_subject_weight:
            left_out |= {"same_subject_weight", "other_questions"}
    elif not hparams.others_asked:
        left_out |= {"others_asked", "others_weight", "other_questions"}
    settings = {n: v for n, v in asdict(hparams).items() if n not in left_out}
    return settings | {"archive": settings["archive"] and Path(settings["archive"]).name}


def _overruled(hparams: S, given: Mapping[str, Any], own: Mapping[str, Any]) -> S:
    """The settings with those given and the benchmark's own in place of the file's."""
    known = [f.name for f in fields(hparams)]
    for name in given:
        if name not in known:
            raise SettingsError(f"DAFNet has no setting {name!r}; {nearest(name, known)}")
    return replace(hparams, **{**given, **own})
