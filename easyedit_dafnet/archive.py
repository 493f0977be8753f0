"""The files of a trained DAFNet, looked at without loading it: config.json, model.safetensors.

Nothing here imports torch, so that what cannot be used is refused at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from .dafnet_hparams import NetworkSizes, SettingsError, check_sizes, shipped, typed
from .files import (
    DamagedFile,
    Kind,
    OutputError,
    check_content,
    check_folder,
    read_object,
    read_yaml,
    reason_of,
)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SETTINGS = "dafnet.yaml"  #: editing settings beside them, where a checkpoint was imported
FORMAT = "easyedit_dafnet/1"
RELEASED_NORMS = {"EBN": "exact", "BN": "batch", "LN": "layer"}  # the authors' names, and ours
SAME_NORM = 1e-4  # relative: one model's weights, as they round in two number formats

ARCHIVE = Kind(
    "a trained DAFNet",
    CONFIG,
    lambda config: config.get("format") == FORMAT and isinstance(config.get("base_model"), dict),
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which one and why."""


@dataclass(frozen=True, kw_only=True)
class ArchiveConfig:
    """What config.json holds.

    modules: fields of the edited modules, in order. base_model: name, type and fingerprint (norm of
    each edited weight) of the language model. training: how the networks came about. sha256: of the
    file with the networks; files of older versions have none.
    """

    format: str
    modules: list[dict[str, Any]]
    sizes: dict[str, Any]
    edit_bias: bool
    train_fusion: bool
    fusion_order: Literal["paper", "released"]
    # Older checkpoints know the mean only.
    fusion: Literal["mean", "least_squares"] = "mean"
    directions: int = 400
    d_answer: int = 0
    base_model: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for values that no DAFNet can have."""
        typed(self)
        sizes = NetworkSizes(**self.sizes)
        typed(sizes)
        check_sizes(sizes)
        check_sizes(self)
        if not self.modules:
            raise ValueError("it edits no modules")
        fingerprint = self.base_model.get("fingerprint", {})
        if not isinstance(fingerprint, dict):
            raise ValueError("the fingerprint of base_model is no object")
        for name, norm in fingerprint.items():
            if isinstance(norm, bool) or not isinstance(norm, int | float):
                raise ValueError(f"the norm of {name} in base_model is {norm!r}, not a number")


def read_archive(path: str | Path) -> ArchiveConfig:
    """What a trained DAFNet's folder says of it; both files are looked at.

    Raises:
        CheckpointError: a file is missing, damaged or of another version.
    """
    folder = Path(path)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            known = sorted(p.name for p in shipped("checkpoints").glob("*/"))
            raise CheckpointError(
                f"archive: {str(path)!r} is no DAFNet checkpoint ({name} is not there); train one "
                f"with DAFNetTrainer, import one, or use a shipped one ({', '.join(known)})."
            )
    try:
        content = read_object(folder / CONFIG)
        check_format(folder, content.get("format"))
        names = {f.name for f in fields(ArchiveConfig)}
        config = ArchiveConfig(**{k: v for k, v in content.items() if k in names})
        check_content(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, "np"):
            pass
        if config.sha256 is not None and config.sha256 != digest(folder / WEIGHTS):
            raise ValueError(f"{WEIGHTS} is not the file that {CONFIG} was written with")
    except (OSError, SafetensorError, SettingsError, DamagedFile, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise damaged(folder, error) from None
    return config


def check_format(folder: Path, found: Any) -> None:
    """Raise CheckpointError for another format than this version's."""
    if found == FORMAT:
        return
    if isinstance(found, str) and found.split("/")[0] == FORMAT.split("/")[0]:
        raise CheckpointError(
            f"archive: {str(folder)!r} has the format {found!r}, of another version of "
            f"easyedit_dafnet; this one reads {FORMAT!r}: install the version that wrote it (newer "
            "formats have higher numbers), or train or import it again."
        )
    raise CheckpointError(
        f"archive: {str(folder)!r} is no DAFNet checkpoint (the format in its {CONFIG} is "
        f"{found!r}, not {FORMAT!r}); name the folder of a trained DAFNet."
    )


def damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"archive: {str(folder)!r} is damaged or of another version ({reason_of(error)}); "
        "train or import it again."
    )


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()


# -- Writing another one there ---------------------------------------------------------------------


def check_archive_folder(path: Path, base_model: Mapping[str, Any]) -> None:
    """Look whether a DAFNet of that language model may be written there.

    Args:
        path: The folder. Nothing may be there but an empty folder or a DAFNet of the same model.
        base_model: What will be the new one's.

    Raises:
        OutputError: something else is there, or nothing can be written.
    """
    check_folder(path, ARCHIVE)
    if not (path / CONFIG).is_file():
        return
    there = read_object(path / CONFIG)["base_model"]
    if difference := _difference(there, base_model):
        raise OutputError(
            f"{path} holds a DAFNet that was trained for another language model ({difference}); "
            "choose another folder (of `train`: --out), or move that one away first."
        )


def _difference(there: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """In what two language models differ; None where they are the same, as far as is known."""
    if there == new:
        return None
    if there.get("type") != new.get("type"):
        return f"it was {there.get('type')!r}, now it is {new.get('type')!r}"
    before, now = (
        m["fingerprint"] if isinstance(m.get("fingerprint"), dict) else {} for m in (there, new)
    )
    common = [name for name in now if name in before]
    for name in common:
        norms = (before[name], now[name])
        if not all(isinstance(n, int | float) for n in norms) or not math.isclose(
            *norms, rel_tol=SAME_NORM
        ):
            return f"the norm of {name} was {before[name]}, now it is {now[name]}"
    return None if common else "or for other modules: none of those here"


# -- The authors' checkpoints ----------------------------------------------------------------------


def read_released_config(
    checkpoint: str | Path, out: str | Path, config: str | Path
) -> tuple[dict[str, Any], NetworkSizes]:
    """The authors' YAML of a checkpoint to import, and its sizes; the files are looked at, too.

    Raises:
        CheckpointError: a file is missing, empty, or holds something else.
        OutputError: nothing may or can be written to `out`.
    """
    check_folder(out, ARCHIVE)
    for path in (checkpoint, config):
        if not Path(path).is_file():
            raise CheckpointError(f"There is no file {str(path)!r} to import.")
    try:
        check_content(Path(checkpoint))
    except DamagedFile as error:
        raise CheckpointError(f"{error} It must be a checkpoint of the authors' code.") from None
    try:
        theirs = read_yaml(Path(config))
    except DamagedFile as error:
        raise CheckpointError(str(error)) from None
    try:
        sizes = {
            **theirs["aux_model"],
            "norm_layer": RELEASED_NORMS[theirs["aux_model"]["norm_layer"]],
        }
        found = NetworkSizes(**sizes)
        typed(found)
        check_sizes(found)
        names, edit_bias = theirs["edit_modules"], theirs["if_edit_bias"]
        if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
            raise ValueError(f"edit_modules is {names!r}")
        if not isinstance(edit_bias, bool):
            raise ValueError(f"if_edit_bias is {edit_bias!r}")
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{config} is not a configuration of the authors' code ({reason_of(error)})"
            "; it needs edit_modules, if_edit_bias and aux_model."
        ) from None
    return theirs, found
