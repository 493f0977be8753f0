from __future__ import annotations

import bz2
import json
from pathlib import Path

import pytest

from benchmarks import dafset
from benchmarks.dafset import main
from tests.dafset.wikidata import claim, dumped, item

for package in ("orjson", "pyarrow", "rapidgzip"):
    pytest.importorskip(package)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "dump.json.bz2"
    lines = [item(n, f"item {n}", claims=[claim("P1", n + 1)]) for n in range(1, 51)]
    path.write_bytes(bz2.compress(dumped(lines)))
    return path


def test_all_readers_find_the_same_items(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = ["stdlib"]
    if dafset.find_spec("qwikidata") is not None:
        beside.append("qwikidata")
    out = tmp_path / "dafset.json"
    options = ["--repeat", "3", "--jobs", "1", "--repetitions", "2", "--items", "1e6"]
    main([str(dump), *options, "--beside", *beside, "--out", str(out)])
    found = json.loads(out.read_text())
    assert [row["what"] for row in found["results"]] == ["ours, 1 job", *beside]
    for row in found["results"]:
        # The first entity stands before the repeated ones, to save a comma.
        assert [reading["items"] for reading in row["readings"]] == [151, 151]
        assert all(r["seconds"] > 0 and r["cpu_seconds"] > 0 for r in row["readings"])
        assert all(1e6 < r["peak"] < 1.5e9 for r in row["readings"])
    printed = capsys.readouterr().out
    assert "Reading 151 items" in printed and "1 million items and 100 GB" in printed


def test_repeated_items_are_items_of_their_own(dump: Path, tmp_path: Path) -> None:
    text = bz2.decompress(dafset.repeated(dump, 3, tmp_path).read_bytes())
    assert [entity["id"] for entity in json.loads(text)] == [f"Q{n}" for n in range(1, 152)]


def test_what_cannot_be_run_is_said_in_one_line(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"dafset: .*no-such-file"):
        main([str(tmp_path / "no-such-file"), "--beside", "stdlib"])
    with pytest.raises(SystemExit, match="2"):
        main([str(dump), "--repeat", "0"])
    monkeypatch.setattr(dafset, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=r"pip install qwikidata.*--beside stdlib"):
        main([str(dump), "--beside", "qwikidata"])
