from __future__ import annotations

import bz2
import datetime
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from easyedit_dafnet.dafset.dump import DumpError
from easyedit_dafnet.dafset.extract import extract
from tests.dafset.wikidata import DATA, claim, dumped, item, literal, rows, unknown

for package in ("orjson", "pyarrow", "rapidgzip"):
    pytest.importorskip(package)


def tables(folder: Path, lines: Any, **options: Any) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """The rows of both tables and the counts."""
    path = folder / "dump.json"
    path.write_bytes(dumped(lines))
    counts = extract(path, folder / "out", jobs=1, progress=False, **options)
    assert json.loads((folder / "out" / "counts.json").read_text()) == counts
    triples = [tuple(row.values()) for row in rows(folder / "out", "triples")]
    return rows(folder / "out", "entities"), triples, counts


def names(**values: str) -> dict[str, dict[str, str]]:
    return {code: {"language": code, "value": value} for code, value in values.items()}


def test_an_item_becomes_a_row(tmp_path: Path) -> None:
    adams = item(
        42,
        labels=names(en="Douglas Adams", de="Adams"),
        descriptions=names(en="English author", de="Autor"),
        aliases={"en": [{"language": "en", "value": "DNA"}, {"language": "en", "value": "DNA"}]},
        sitelinks={
            "enwiki": {"site": "enwiki", "title": "Douglas Adams", "badges": []},
            "dewiki": {"site": "dewiki", "title": "Douglas Adams", "badges": []},
        },
        modified="2026-10-25T20:00:36Z",
        claims=[claim("P31", 5), unknown("P570")],
    )
    [row], triples, counts = tables(tmp_path, [adams])
    assert row == {
        "id": 42,
        "label": "Douglas Adams",
        "aliases": ["DNA"],
        "description": "English author",
        "title": "Douglas_Adams",
        "sitelinks": 2,
        "modified": datetime.datetime(2026, 10, 25, 20, 0, 36),
        "past": True,
    }
    assert triples == [(42, 31, 5)]
    assert counts["items"] == counts["entities"] == 1
    assert counts["statements"] == 2 and counts["skipped"] == {"no value": 1}


def test_another_language_has_its_own_names_and_pages(tmp_path: Path) -> None:
    links = {"zh_min_nanwiki": {"title": "A B"}, "enwiki": {"title": "C"}}
    labels = names(en="C", **{"zh-min-nan": "A"})
    entities, *_ = tables(
        tmp_path, [item(1, labels=labels, sitelinks=links)], language="zh-min-nan"
    )
    assert [(row["label"], row["title"]) for row in entities] == [("A", "A_B")]


def test_a_label_of_all_languages_stands_in(tmp_path: Path) -> None:
    aliases = {"mul": [{"language": "mul", "value": "D. Knuth"}]}
    lines = [
        item(1, labels=names(mul="Donald Knuth"), aliases=aliases),
        item(2, labels=names(mul="Köln", en="Cologne")),
        item(3, labels=names(de="nur deutsch")),
    ]
    entities, _, counts = tables(tmp_path, lines)
    assert [row["label"] for row in entities] == ["Donald Knuth", "Cologne"]
    assert entities[0]["aliases"] == ["D. Knuth"]
    assert counts["skipped"] == {"no label": 1} and counts["items"] == 3


def test_statements_are_truthy(tmp_path: Path) -> None:
    ended: dict[str, Any] = {"qualifiers": {"P582": [{"snaktype": "value", "property": "P582"}]}}
    some_end: dict[str, Any] = {
        "qualifiers": {"P582": [{"snaktype": "somevalue", "property": "P582"}]}
    }
    no_end: dict[str, Any] = {"qualifiers": {"P582": [{"snaktype": "novalue", "property": "P582"}]}}
    lines = [
        # preferred ones where there are any
        item(1, claims=[claim("P1", 2), claim("P1", 3, "preferred"), claim("P1", 4, "preferred")]),
        item(2, claims=[claim("P1", 2, "deprecated"), claim("P2", 3), claim("P2", 3)]),
        item(3, claims=[claim("P1", 4, **ended), claim("P1", 5, **some_end)]),
        item(4, claims=[claim("P1", 5, **no_end), claim("P1", 6, qualifiers=[])]),
        item(5, claims=[unknown("P1"), unknown("P1", "novalue"), literal("P2", "x")]),
        # what is preferred has ended: the normal ones are not the best either
        item(6, claims=[claim("P1", 2), claim("P1", 3, "preferred", **ended)]),
    ]
    _, triples, counts = tables(tmp_path, lines)
    assert triples == [(1, 1, 3), (1, 1, 4), (2, 2, 3), (4, 1, 5), (4, 1, 6)]
    assert counts["skipped"] == {
        "another one is preferred": 2,
        "deprecated": 1,
        "ended": 3,
        "no label": 6,
        "no value": 2,
        "said twice": 1,
        "wrong datatype": 1,
    }
    skipped = sum(counts["skipped"].values()) - counts["skipped"]["no label"]
    assert counts["statements"] == counts["triples"] + skipped == 15


@pytest.mark.parametrize(
    ("statement", "past"),
    [
        (unknown("P570"), True),
        *((unknown(of_the_dead), True) for of_the_dead in ("P20", "P119", "P509", "P1196")),
        (unknown("P576"), True),
        (unknown("P582"), True),
        (unknown("P582", "novalue"), False),
        (unknown("P570", rank="deprecated"), False),
        (unknown("P569"), False),
    ],
)
def test_the_past_is_told(statement: dict[str, Any], past: bool, tmp_path: Path) -> None:
    [row], *_ = tables(tmp_path, [item(1, "one", claims=[statement])])
    assert row["past"] is past


def test_old_layouts_are_read(tmp_path: Path) -> None:
    old = claim("P31", 5)
    del old["mainsnak"]["datavalue"]["value"]["id"], old["mainsnak"]["datatype"]
    string = literal("P2", "x")
    del string["mainsnak"]["datatype"]
    newest = claim("P31", 6)
    del newest["mainsnak"]["datavalue"]["value"]["numeric-id"]
    empty: dict[str, Any] = {"descriptions": [], "aliases": [], "sitelinks": []}
    nothing: dict[str, Any] = {"type": "item", "id": "Q2", "labels": [], "claims": []}
    lines = [item(1, "one", claims=[old, string, newest], **empty), nothing]
    [row], triples, counts = tables(tmp_path, lines)
    assert (row["aliases"], row["description"], row["title"]) == ([], None, None)
    assert (row["sitelinks"], row["modified"]) == (0, None)
    assert triples == [(1, 31, 5), (1, 31, 6)]
    assert counts["skipped"] == {"no label": 1, "wrong datatype": 1}


def test_what_is_no_item_is_counted(tmp_path: Path) -> None:
    broken = json.dumps(item(1, "cut", claims=[claim("P1", 2)]))
    lines: list[Any] = [
        broken[:60],
        "5",
        '{"type": "item", "id": "Q7", "claims": {"P1": [{}]}}',
        item(10**30, "far too many"),
        item(8, "about far too many", claims=[claim("P1", 10**30)]),
        {"type": "property", "id": "P31", "labels": names(en="instance of"), "claims": {}},
        {"type": "lexeme", "id": "L1", "lemmas": {}},
        {"entity": "Q3", "redirect": "Q4"},
        item(3, "moved", redirects={"from": "Q9", "to": "Q3"}),
        "",
        item(4, "four"),
    ]
    entities, triples, counts = tables(tmp_path, lines)
    assert [row["id"] for row in entities] == [4] and triples == []
    assert counts["skipped"] == {"damaged line": 5, "not an item": 2, "redirect": 2}
    assert counts["items"] == 1


def test_an_item_counts_once(tmp_path: Path) -> None:
    """As it stands first, in the same chunk or another."""
    lines = [item(1, "first", claims=[claim("P1", 2)]), item(2, "two"), item(2, "too")]
    lines += [item(1, "later", claims=[claim("P1", 3)])]
    for chunk in (100, 100_000):
        (tmp_path / str(chunk)).mkdir()
        entities, triples, counts = tables(tmp_path / str(chunk), lines, chunk=chunk)
        assert [(row["id"], row["label"]) for row in entities] == [(1, "first"), (2, "two")]
        assert triples == [(1, 1, 2)] and counts["items"] == 4
        assert counts["skipped"] == {"item once more": 2}


def test_a_dump_without_entities_gives_empty_tables(tmp_path: Path) -> None:
    entities, triples, counts = tables(tmp_path, [])
    assert entities == triples == [] and counts["items"] == 0
    assert len(list((tmp_path / "out").glob("*-00000.parquet"))) == 2


# -- Many chunks -----------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"chunk": 20_000, "chunks_per_part": 3, "progress": False}


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 items, 1.2 MB, some 60 chunks; 500 of them stand in it once more."""
    draw = random.Random(0)
    lines = [
        item(n, f"item {n}" if n % 3 else "", claims=[claim("P1", draw.randrange(1, 3000))])
        for n in (*range(1, 3001), *range(1000, 1500))
    ]
    path = tmp_path_factory.mktemp("dump") / "dump.json.bz2"
    path.write_bytes(bz2.compress(dumped(lines), 1))
    return path


@pytest.fixture(scope="module")
def whole(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    counts = extract(dump, out, jobs=1, **SMALL)
    assert (counts["items"], counts["entities"], counts["triples"]) == (3500, 2000, 3000)
    assert counts["skipped"] == {"no label": 1166, "item once more": 500}
    assert len(list(out.glob("triples-*.parquet"))) > 10
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def test_workers_do_not_change_the_tables(dump: Path, whole: Path, tmp_path: Path) -> None:
    extract(dump, tmp_path, jobs=2, **SMALL)
    assert files(tmp_path) == files(whole)


KILLED = """
import sys
from pathlib import Path
from easyedit_dafnet.dafset.extract import extract

if __name__ == "__main__":
    extract(sys.argv[1], sys.argv[2], jobs=2, chunk=20_000, chunks_per_part=3, progress=False)
"""


def test_a_killed_run_goes_on_to_the_same_tables(dump: Path, whole: Path, tmp_path: Path) -> None:
    script, out = tmp_path / "killed.py", tmp_path / "out"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for parts in (1, 4):
        run = subprocess.Popen(
            [sys.executable, str(script), str(dump), str(out)],
            env=environment,
            start_new_session=True,  # whose process group has the workers in it
        )
        end = time.monotonic() + 300
        while len(list(out.glob("triples-*.parquet"))) < parts:
            assert run.poll() is None and time.monotonic() < end
            time.sleep(0.001)
        run.send_signal(signal.SIGKILL)
        run.wait()
        while alive(run.pid):  # the workers end by themselves
            assert time.monotonic() < end
            time.sleep(0.05)
    state = json.loads((out / "done.json").read_text())
    assert 0 < state["parts"] < len(list(whole.glob("triples-*.parquet")))
    assert not state["finished"] and not (out / "counts.json").exists()
    kept = (out / "triples-00000.parquet").stat().st_mtime_ns
    extract(dump, out, jobs=1, **SMALL)
    assert (out / "triples-00000.parquet").stat().st_mtime_ns == kept
    assert files(out) == files(whole)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_finished_folder_is_left_as_it_is(dump: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir() if path.name[0] != "."}
    assert extract(dump, whole, jobs=1, **SMALL) == json.loads((whole / "counts.json").read_text())
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_part_that_was_not_noted_is_written_again(
    dump: Path, whole: Path, tmp_path: Path
) -> None:
    """As if killed between a part and the note of it, with a half-written next one."""
    extract(dump, tmp_path, jobs=1, **SMALL)
    state = json.loads((tmp_path / "done.json").read_text())
    empty = dict.fromkeys(state["rows"], 0)
    state |= {"parts": 0, "rows": empty, "skipped": {}, "finished": False}
    (tmp_path / "done.json").write_text(json.dumps(state))
    (tmp_path / "entities-00001.parquet").write_bytes(b"PAR1")
    (tmp_path / ".entities-00002.parquet.part").write_bytes(b"PAR1")
    extract(dump, tmp_path, jobs=1, **SMALL)
    assert files(tmp_path) == files(whole)
    assert not list(tmp_path.glob(".*.part"))


def test_another_dump_or_language_is_refused(dump: Path, whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(dumped([item(1, "one")]))
    before = files(whole)
    with pytest.raises(DumpError, match=r"another dump.*size.*choose another folder") as error:
        extract(other, whole, jobs=1, **SMALL)
    assert str(whole) in str(error.value)
    with pytest.raises(DumpError, match=r"differs in language\)"):
        extract(dump, whole, "de", jobs=1, **SMALL)
    assert files(whole) == before


def test_two_processes_do_not_share_a_folder(dump: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(DumpError, match="Another process"):
        extract(dump, tmp_path, jobs=1, **SMALL)


def test_a_truncated_archive_gives_what_comes_before(
    dump: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, out = tmp_path / "cut.json.bz2", tmp_path / "out"
    packed = dump.read_bytes()
    path.write_bytes(packed[: len(packed) * 3 // 4])
    with caplog.at_level(logging.WARNING):
        counts = extract(path, out, jobs=2, **SMALL)
    assert counts["skipped"]["truncated archive"] == 1
    assert "damaged line" not in counts["skipped"]
    assert "cut.json.bz2 is cut off or damaged" in caplog.text
    found, all_rows = rows(out, "triples"), rows(whole, "triples")
    assert 1000 < len(found) < 3000 and found == all_rows[: len(found)]


def test_published_dumps_are_read(tmp_path: Path) -> None:
    folder = DATA / "wikidata"
    if not folder.is_dir():
        pytest.skip("no wikidata; set DAFNET_DATA to its folder")
    old = extract(folder / "sample-dump-20150815.json.gz", tmp_path / "old", jobs=1, progress=False)
    assert old["items"] == 55 and old["skipped"] == {"no label": 55, "not an item": 46}
    assert old["triples"] == old["statements"] == 119
    extract(folder / "Q22.json", tmp_path / "Q22", jobs=1, progress=False)
    [scotland] = rows(tmp_path / "Q22", "entities")
    assert (scotland["id"], scotland["label"], scotland["title"]) == (22, "Scotland", "Scotland")
    assert {"head": 22, "relation": 17, "tail": 145} in rows(tmp_path / "Q22", "triples")
