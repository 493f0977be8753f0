"""What a result was made with: versions, commit and hardware."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from .. import __version__
from ..bridge import host_info


def environment(device: str) -> dict[str, Any]:
    """For the results of this process; quick enough to be asked for each."""
    return {
        "easyedit_dafnet": __version__,
        "commit": project_commit(),
        "host": host_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "threads": torch.get_num_threads(),
    }


def command_line() -> str:
    return shlex.join(["easyedit-dafnet", *sys.argv[1:]])


def host_version() -> str | None:
    """None without EasyEdit; our own methods run without it."""
    try:
        host = host_info()
    except ImportError:
        return None
    return f"EasyEdit {host.kind} ({host.version})"


def project_commit() -> str | None:
    """The checkout's commit, with a + when files differ from it; None outside a checkout."""
    project = Path(__file__).resolve().parents[2]
    if not (project / ".git").exists():
        return None
    git = ["git", "-C", str(project)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
