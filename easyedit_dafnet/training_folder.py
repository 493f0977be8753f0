"""Where a training run keeps what it writes, and what a run that was there before has left.

Nothing here imports torch, so that a folder with another run in it is refused at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .archive import ARCHIVE, CONFIG, CheckpointError
from .dafnet_hparams import DAFNetTrainingHparams, SettingsError, typed
from .files import OutputError, check_content, check_folder, check_room, reason_of

STATE = "state.safetensors"
FORMAT = "easyedit_dafnet training/1"


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """All of a state but its tensors.

    step: steps done. seconds: time spent. log_size: bytes of the log up to this step.
    best, validated, waited: scores of the kept checkpoint, step of the last validation, and
    validations since the best one. settings, data, model,
    host: what the run is and where it ran, to be compared before it goes on. groups: see Unedited.
    """

    step: int
    seconds: float
    log_size: int
    best: dict[str, float]
    validated: int
    waited: int
    curriculum: dict[str, Any]
    warmup: dict[str, Any]
    random: list[Any]
    groups: list[list[int]]
    settings: dict[str, Any]
    data: dict[str, str]
    model: dict[str, float]
    host: dict[str, Any]

    @property
    def finished(self) -> bool:
        patience = self.settings["val_patience"]
        return self.step >= self.settings["max_iters"] or 0 < patience <= self.waited


def read_state(folder: Path) -> TrainingState:
    """The state in a folder. Raises CheckpointError when there is none or it is damaged."""
    path = folder / STATE
    if not path.is_file():
        raise CheckpointError(
            f"There is nothing to resume in {folder}; start a new run, or name the results folder "
            "and the language model of the interrupted one."
        )
    try:
        check_content(path)
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}, not {FORMAT!r}")
        state = TrainingState(**json.loads(metadata["state"]))
        typed(state)
        _ = state.finished  # whether the settings that it rests on are there
        return state
    except RecursionError:
        raise damaged_state(folder, ValueError("it is nested too deeply")) from None
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise damaged_state(folder, error) from None


def damaged_state(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The training state in {folder} is damaged or of another version "
        f"({reason_of(error)}); start a new run (--fresh, or run(fresh=True))."
    )


@dataclass(frozen=True)
class TrainingFolder:
    """The places of one run: `results_dir`, and in it those of the language model's name."""

    results: Path
    model: str

    @classmethod
    def of(cls, config: DAFNetTrainingHparams) -> TrainingFolder:
        return cls(Path(config.results_dir), Path(config.model_name).name)

    @property
    def archive(self) -> Path:
        """The trained DAFNet."""
        return self.results / "models" / "DAFNet" / self.model

    @property
    def log(self) -> Path:
        return self.results / "logs" / "DAFNet" / f"{self.model}.jsonl"

    @property
    def state(self) -> Path:
        """The folder of the run's state."""
        return self.results / "training" / "DAFNet" / self.model

    def check(self, resume: bool, fresh: bool, size: int = 0) -> None:
        """Look whether a run may begin or go on here, and can.

        Args:
            resume: It goes on with the state that is here.
            fresh: It begins anew, and takes the place of what a run has left here.
            size: Bytes that the state will have.

        Raises:
            CheckpointError: there is a run here, and neither was said; or none to go on with.
            OutputError: something else is here, or nothing can be written.
            SettingsError: both were said.
        """
        if resume and fresh:
            raise SettingsError("A run either goes on (resume) or begins anew (fresh), not both.")
        if resume:
            read_state(self.state)
        elif not fresh:
            self._check_nothing_here()
        check_folder(self.archive, ARCHIVE)
        for folder in (self.state, self.log.parent):
            check_room(folder, size)
        for file in (self.state / STATE, self.log):
            if file.is_dir():
                raise OutputError(
                    f"{file} is a folder; remove it, or choose another results folder."
                )

    def _check_nothing_here(self) -> None:
        anew = (
            "begin anew and replace it (--fresh, or run(fresh=True)), or choose another results "
            "folder (--out)"
        )
        if (self.state / STATE).exists():
            state = read_state(self.state)
            done = f"{state.step} of {state.settings['max_iters']} steps"
            if state.finished:
                raise CheckpointError(
                    f"A finished run ({done}) is in {self.state}: {anew}; --resume with more "
                    "--max-iters goes on with it."
                )
            raise CheckpointError(
                f"An unfinished run ({done}) is in {self.state}: go on with it (--resume, or "
                f"run(resume=True)), {anew}."
            )
        for path, what in ((self.archive / CONFIG, "trained DAFNet"), (self.log, "run's log")):
            if path.exists():
                raise CheckpointError(f"A {what} is in {path.parent} already: {anew}.")
