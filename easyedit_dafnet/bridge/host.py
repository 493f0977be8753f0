"""Finds the EasyEdit to work with, without importing it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RELEASE = "0.0.1.dev0"
_HOW_TO_GET_EASYEDIT = (
    "either `pip install --no-deps easyeditor==0.0.1.dev0`, or clone "
    "https://github.com/zjunlp/EasyEdit and set EASYEDIT_HOME to the clone"
)


@dataclass(frozen=True)
class HostInfo:
    """The EasyEdit in use.

    kind: "release" (the package on PyPI) or "main" (a checkout of EasyEdit's git repository);
    version: the distribution's version for the release, "commit <hash>" for a checkout;
    path: the folder of the package `easyeditor`.
    """

    kind: Literal["release", "main"]
    version: str
    path: Path

    def __str__(self) -> str:
        return f"EasyEdit {self.kind} ({self.version}) in {self.path}"


def host_info() -> HostInfo:
    """Return which EasyEdit `import easyeditor` will give (or has given).

    `EASYEDIT_HOME` counts first, then an `easyeditor` that is already imported, then whatever is
    installed. Raises ImportError when there is none, when `EASYEDIT_HOME` is not a checkout, or
    when another `easyeditor` than the one in `EASYEDIT_HOME` is already imported.
    """
    home = _package_in_easyedit_home()
    path = home or installed_package()
    if path is None:
        raise ImportError(f"EasyEdit was not found: {_HOW_TO_GET_EASYEDIT}.")
    if "easyeditor" in sys.modules and path != installed_package():
        raise ImportError(
            f"easyeditor was already imported from {installed_package()}, but EASYEDIT_HOME asks "
            f"for {path}: start Python afresh and call easyedit_dafnet.register() first."
        )
    # Main moved its device handling into util/device.py; the release has no such file.
    if (path / "util" / "device.py").exists():
        return HostInfo("main", _commit(path.parent), path)
    return HostInfo("release", _distribution_version(path), path)


def _package_in_easyedit_home() -> Path | None:
    home = os.environ.get("EASYEDIT_HOME")
    if not home:
        return None
    package = Path(home).expanduser().resolve() / "easyeditor"
    if not (package / "__init__.py").is_file():
        raise ImportError(
            f"EASYEDIT_HOME is {home!r}, which is not a checkout of EasyEdit (it has no "
            f"easyeditor/__init__.py): {_HOW_TO_GET_EASYEDIT}."
        )
    return package


def installed_package() -> Path | None:
    """Return the folder that `import easyeditor` takes the package from, None without one."""
    spec = importlib.util.find_spec("easyeditor")
    # A mere folder of that name is a namespace package and has no origin.
    return Path(spec.origin).resolve().parent if spec is not None and spec.origin else None


def _commit(checkout: Path) -> str:
    if (checkout / ".git").exists():
        try:
            git = subprocess.run(
                ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
                capture_output=True,
                text=True,
                check=True,
            )
            return f"commit {git.stdout.strip()}"
        except (OSError, subprocess.CalledProcessError):
            pass
    return "unknown commit"


def _distribution_version(package: Path) -> str:
    try:
        distribution = importlib.metadata.distribution("easyeditor")
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"
    installed = Path(str(distribution.locate_file("easyeditor"))).resolve()
    return distribution.version if installed == package else "unknown version"
