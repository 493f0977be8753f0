"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file by another name first, so that a kill or a power cut never leaves a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name, so that what a killed process leaves is written over; locks keep writers apart.
    scratch = path.with_name(f".{path.name}.part")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a power cut could leave the name without its content
    scratch.replace(path)
