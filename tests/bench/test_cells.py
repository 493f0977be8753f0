from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from easyedit_dafnet.bench.cells import (
    Cell,
    Estimates,
    RunFolder,
    cell_from,
    read_json,
    write_json,
)
from easyedit_dafnet.files import DamagedFile


def finish(folder: RunFolder, cell: Cell, per_edit: float, score: float, fixed: float) -> None:
    edits = 25 if cell.num_edits == 1 else cell.num_edits
    write_json(folder.result(cell), result(cell, edits, per_edit, score, fixed))


def result(cell: Cell, edits: int, per_edit: float, score: float, fixed: float) -> dict[str, Any]:
    seconds = {"edit": edits * per_edit, "score": edits * score}
    return {
        "cell": {"data": cell.data, "num_edits": cell.num_edits},
        "status": "done",
        "edits": ["a"] * edits,
        "seconds": {**seconds, "total": sum(seconds.values()) + fixed},
    }


def edits(cell: Cell) -> int:
    return 25 if cell.num_edits == 1 else cell.num_edits


def test_random_numbers_are_the_methods_own_but_the_same_for_all() -> None:
    cells = [Cell(n, s, d, "FT") for n in (1, 10) for s in (0, 1) for d in ("a", "b")]
    seeds = {cell.random_seed(seed) for cell in cells for seed in (0, 1)}
    assert len(seeds) == 16 and all(0 <= seed < 2**32 for seed in seeds)
    assert Cell(10, 0, "a", "FT").random_seed(0) == Cell(10, 0, "a", "ROME").random_seed(0)


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "cells" / "a.json"
    assert read_json(file) is None
    write_json(file, {"a": [1, 2]})

    class Unwritable:
        def __str__(self) -> str:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_json(file, {"a": Unwritable()})
    assert read_json(file) == {"a": [1, 2]}
    assert list(file.parent.iterdir()) == [file]


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    folder, cell = RunFolder(tmp_path), Cell(10, 0, "a", "FT")
    with folder.lock(cell), pytest.raises(TimeoutError):
        folder.lock(cell).acquire(timeout=0)
    folder.lock(cell).acquire(timeout=0)


def test_a_cell_is_found_again_in_its_result() -> None:
    cell = Cell(10, 2, "a", "FT")
    assert cell_from({"data": "a", "label": "FT", "num_edits": 10, "stream": 2, "seed": 3}) == cell


def test_estimates_go_by_what_is_nearest(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    plan = [Cell(n, s, d, m) for n in (1, 10, 100) for s in (0, 1) for d in "ab" for m in "FR"]
    assert Estimates(folder, plan, edits).seconds(plan[0]) is None

    write_json(folder.sanity("F"), result(Cell(1, 0, "a", "F"), 8, 4.0, 1.0, 0.0))
    # 8 edits took 5 s each.
    found = Estimates(folder, plan, edits)
    assert found.seconds(Cell(100, 0, "a", "F")) == pytest.approx(500)
    assert found.seconds(Cell(1, 0, "a", "F")) == pytest.approx(125)
    assert found.seconds(Cell(100, 0, "a", "R")) is None

    finish(folder, Cell(10, 0, "a", "F"), per_edit=2.0, score=1.0, fixed=7.0)
    finish(folder, Cell(1, 0, "a", "F"), per_edit=1.0, score=1.0, fixed=0.0)
    found = Estimates(folder, plan, edits)
    assert found.seconds(Cell(100, 0, "a", "F")) == pytest.approx(307)
    assert found.seconds(Cell(100, 0, "b", "F")) == pytest.approx(307)
    assert found.seconds(Cell(1, 1, "b", "F")) == pytest.approx(50)

    finish(folder, Cell(10, 0, "b", "F"), per_edit=5.0, score=0.0, fixed=0.0)
    finish(folder, Cell(10, 1, "b", "F"), per_edit=7.0, score=0.0, fixed=0.0)
    assert Estimates(folder, plan, edits).seconds(Cell(100, 0, "b", "F")) == pytest.approx(600)


def test_failed_cells_tell_nothing_about_time(tmp_path: Path) -> None:
    folder, cell = RunFolder(tmp_path), Cell(10, 0, "a", "F")
    error = {"type": "ValueError", "message": "no room"}
    write_json(folder.result(cell), {"status": "failed", "error": error})
    assert Estimates(folder, [cell], edits).seconds(cell) is None
    assert folder.open_cells([cell, Cell(10, 1, "a", "F")]) == [Cell(10, 1, "a", "F")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty"),
        ("{", "not JSON"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "'status' is missing"),
        ('{"status": "half"}', "its status is 'half'"),
        ('{"status": "failed"}', "'error' is missing"),
        ('{"status": "done", "edits": [1]}', "'seconds' is missing"),
        ('{"status": "done", "edits": 3, "seconds": {"edit": "a"}}', "no len"),
    ],
)
def test_a_damaged_cell_is_named(tmp_path: Path, content: str, reason: str) -> None:
    folder, cell = RunFolder(tmp_path), Cell(10, 0, "a", "F")
    folder.result(cell).parent.mkdir(parents=True)
    folder.result(cell).write_text(content)
    with pytest.raises(DamagedFile, match=reason) as error:
        Estimates(folder, [cell], edits)
    assert str(folder.result(cell)) in str(error.value) and "remove it" in str(error.value)
    assert "\n" not in str(error.value)
