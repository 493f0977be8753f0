from __future__ import annotations

import os
from pathlib import Path

import pytest

from easyedit_dafnet.files import write_text


def test_a_write_that_is_broken_off_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "report.md"
    write_text(path, "one")

    def broken_off(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", broken_off)
        write_text(path, "two")
    assert path.read_text() == "one"
    write_text(path, "three ÷ 3")
    assert path.read_text(encoding="utf-8") == "three ÷ 3"
    assert list(path.parent.iterdir()) == [path]
