"""Files and folders that are there as a whole or not at all, and take nobody else's place.

Every output goes through here, so that each is looked at in the same way before work begins:

    check_folder(path, KIND)               # may it be written there, and can it? before long work
    with replacing_folder(path, KIND) as folder:
        ...                                # the folder appears when the block ends well

`mark_folder` is for a folder that is filled little by little, `check_file` with `write_text` or
`save_tensors` for a single file, `check_room` for files in a folder that may hold others.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from torch import Tensor

MARK = ".easyedit_dafnet.json"  #: says whose a folder is that is still being filled
SHOWN = 3  # entries that a message names


class OutputError(ValueError):
    """A place that must not or cannot be written to; the message says why and what to do."""


class DamagedFile(ValueError):
    """A file that does not hold what it should; the message names it and says why."""


@dataclass(frozen=True)
class Kind:
    """A kind of folder that this package writes, and may therefore write again.

    name: what messages call it. file: the file in it whose JSON object tells, by `is_ours`, that it
    is one; a folder in the making, and one that has no such file, has a mark instead.
    """

    name: str
    file: str = MARK
    is_ours: Callable[[Mapping[str, Any]], bool] = lambda content: False

    def is_of(self, folder: Path) -> bool:
        """Whether the folder is one of this kind. A file of that name alone does not say so."""
        with suppress(OSError, DamagedFile):
            if read_object(folder / MARK).get("kind") == self.name:
                return True
        with suppress(OSError, DamagedFile):
            return self.is_ours(read_object(folder / self.file))
        return False


# -- Before work begins ----------------------------------------------------------------------------


def check_folder(path: str | Path, *kinds: Kind, size: int = 0, in_place: bool = False) -> None:
    """Look whether a folder may be put there, and can be: call it before long work.

    Nothing is changed. `replacing_folder` then writes; it looks again.

    Args:
        path: The folder to be. Nothing may be there but an empty folder, or one of the `kinds`.
        kinds: What may be replaced.
        size: Bytes that will be written.
        in_place: Files are to be written into a folder that is there, instead of its replacement.

    Raises:
        OutputError: something else is there, or nothing can be written.
    """
    path = Path(path)
    with _one_sentence(path):
        _check_place(path)
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file; name a folder.")
        names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        if names and not any(kind.is_of(path) for kind in kinds):
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            is_not = f" and is not {' or '.join(kind.name for kind in kinds)}" if kinds else ""
            raise OutputError(
                f"{path} is not empty (it holds {', '.join(names[:SHOWN])}{more}){is_not}; choose "
                "a new folder, so that nothing is lost."
            )
        if path.is_dir() and not in_place:
            if os.path.ismount(path):
                raise OutputError(f"{path} is where a disk is mounted; name a new folder in it.")
            _try(path.resolve().parent, size)  # it is moved away, into another folder
        _try(path, size)


def mark_folder(path: str | Path, kind: Kind, *others: Kind) -> None:
    """Make a folder that is to be filled little by little, marked as one of the kind.

    Args:
        path: The folder. Nothing may be there but an empty folder, or one of the kinds.
        kind: What it will be: the mark tells a later call that it may go on there.
        others: What else it may be, without being marked anew.

    Raises:
        OutputError: something else is there, or nothing can be written.
    """
    check_folder(path, kind, *others, in_place=True)
    if not any(k.is_of(Path(path)) for k in (kind, *others)):
        write_text(Path(path) / MARK, json.dumps({"kind": kind.name}) + "\n")


def check_room(folder: str | Path, size: int = 0) -> None:
    """Look whether files can be written into a folder, whatever is in it; nothing is changed.

    Args:
        folder: It need not be there.
        size: Bytes that will be written.

    Raises:
        OutputError: nothing can be written, or not so much.
    """
    folder = Path(folder)
    with _one_sentence(folder):
        _check_place(folder / "file")
        _try(folder, size)


def check_file(path: str | Path, size: int = 0) -> None:
    """Look whether a new file can be written there: call it before long work.

    Args:
        path: The file to be. Nothing may be there.
        size: Bytes that will be written.

    Raises:
        OutputError: something is there, or nothing can be written.
    """
    path = Path(path)
    with _one_sentence(path):
        _check_place(path)
        if path.exists():
            raise OutputError(f"{path} exists; choose a new name, so that nothing is lost.")
        _try(path, size)


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}).") from None


def _check_place(path: Path) -> None:
    """Neither a link to nothing nor below a file."""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise OutputError(
                f"{place} is a link to {place.readlink()}, which is not there; remove the link, "
                "or choose another name."
            )
        if place != path and place.exists() and not place.is_dir():
            raise OutputError(f"{place} is a file, so nothing can be written to {path}.")


def _try(folder: Path, size: int) -> None:
    """Write a scratch file into a folder of that name; what was not there is removed again.

    Raises OSError where that fails or there is no room for so many bytes.
    """
    with _made(folder) as missing:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"0")
                file.truncate(max(size, 1))  # takes no room, but a limit on files' sizes shows
            if shutil.disk_usage(folder).free < size:
                raise OSError(errno.ENOSPC, f"{size / 1e6:,.0f} MB are needed, there is no room")
        finally:
            _remove(missing)


# -- Writing ---------------------------------------------------------------------------------------


@contextmanager
def replacing_folder(path: str | Path, *kinds: Kind) -> Iterator[Path]:
    """A fresh folder to write into that takes the place of `path` when the block ends well.

    What else lay in the old one is kept. All files get the mode that the umask gives.

    Args:
        path: The folder to be. Nothing may be there but an empty folder, or one of the `kinds`.
        kinds: What may be replaced.

    Raises:
        OutputError: something else is there, or nothing can be written.
    """
    check_folder(path, *kinds)
    path = Path(path).resolve()  # what a link leads to is replaced, not the link
    with (
        _made(path.parent),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch,
    ):
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        yield fresh
        give_usual_modes(fresh)
        if path.exists():
            written = {entry.name for entry in fresh.iterdir()}
            shutil.copytree(
                path, fresh, symlinks=True, dirs_exist_ok=True,
                ignore=lambda folder, _: written if Path(folder) == path else (),
            )  # fmt: skip
        try:
            if path.exists():
                path.rename(old)
            fresh.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a file by another name first, so that a kill or a power cut never leaves a part."""
    # One name, so that what a killed process leaves is written over; locks keep writers apart.
    scratch = path.with_name(f".{path.name}.part")
    with _made(path.parent):
        try:
            with scratch.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave the name without its content
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file as a whole or not at all, with the mode that the umask gives.

    Args:
        tensors: By name; contiguous, none sharing memory with another.
        path: The file, which is replaced where it is there.
        metadata: What its header holds beside.

    Raises:
        OutputError: it cannot be written; what was there still is.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # A folder of one name: safetensors writes to a name of its own first, which a kill would leave.
    scratch = path.with_name(f".{path.name}.part")
    with _made(path.parent):
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir()
            file = scratch / path.name
            mode = _usual_mode(file)
            save_file(dict(tensors), file, None if metadata is None else dict(metadata))
            file.chmod(mode)  # safetensors makes it private, even in a shared folder
            with file.open("r+b") as opened:
                os.fsync(opened.fileno())
            file.replace(path)
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"{path} cannot be written ({reason_of(error)}); make room for it."
            ) from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def give_usual_modes(folder: Path) -> None:
    """Give all files of a folder the mode that the umask gives: safetensors makes them private."""
    mode = _usual_mode(folder / ".mode")
    (folder / ".mode").unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def _usual_mode(new: Path) -> int:
    """The mode of new files there, from one that is made: the umask itself cannot be read alone."""
    new.touch()
    return new.stat().st_mode & 0o777


@contextmanager
def _made(folder: Path) -> Iterator[list[Path]]:
    """Makes the folder; where the block fails, those that were not there are removed again."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield missing
    except BaseException:
        _remove(missing)
        raise


def _remove(folders: list[Path]) -> None:
    """Those that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


# -- Reading ---------------------------------------------------------------------------------------


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it holds something else; the message names it.
    """
    check_content(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise DamagedFile(f"{path} is damaged: it is nested too deeply.") from None
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged: it is not JSON ({reason_of(error)}).") from None
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} is damaged: it holds no JSON object.")
    return value


def reason_of(error: Exception) -> str:
    """What an error says, in one line for a message's brackets; never nothing."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return " ".join(str(error).split()).removesuffix(".")[:300] or type(error).__name__


def check_content(path: Path) -> None:
    """Raise DamagedFile for a file that is empty, or only stands for one (Git LFS)."""
    with path.open("rb") as file:
        start = file.read(200)
    if not start:
        raise DamagedFile(f"{path} is empty.")
    if start.startswith(b"version https://git-lfs"):
        raise DamagedFile(
            f"{path} is a pointer of Git LFS, not the file; fetch it with `git lfs pull`."
        )


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: plain values, lists and mappings.

    Raises:
        OSError: it cannot be read.
        DamagedFile: it is not UTF-8 or not YAML, or names a key twice; the message names it.
    """
    content = path.read_bytes()
    try:
        return yaml.load(content.decode("utf-8-sig"), Loader=_UniqueKeys)
    except UnicodeDecodeError as error:
        raise DamagedFile(
            f"{path} is not UTF-8 (byte {error.start}); save it with that encoding."
        ) from None
    except RecursionError:
        raise DamagedFile(f"{path} is not valid YAML: it is nested too deeply.") from None
    except (yaml.YAMLError, ValueError) as error:  # of a date that there is not, say
        raise DamagedFile(f"{path} is not valid YAML: {reason_of(error)}.") from None


class _UniqueKeys(yaml.SafeLoader):
    """YAML's own loader lets the last one of two equal keys win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if (key.tag, key.value) in seen:
                        line = key.start_mark.line + 1
                        raise DamagedFile(f"the key {key.value!r} of line {line} is there twice")
                    seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)
