from __future__ import annotations

import bz2
import gzip
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from easyedit_dafnet.dafset.dump import Archive, Dump, DumpError
from tests.dafset.wikidata import DATA, dumped, item

pytest.importorskip("rapidgzip")

DRAW = random.Random(0)
# Some 800 KB that compress badly: several blocks of bz2 and several reads.
TEXT = dumped(item(n, f"{DRAW.random()}") for n in range(8000))
PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": lambda text: bz2.compress(text, 1),
    # as tools that work on several cores write it
    "streams": lambda text: b"".join(
        bz2.compress(text[i : i + 100_000]) for i in range(0, len(text), 100_000)
    ),
}


def chunks(path: Path, size: int = 50_000) -> tuple[list[bytes], bool]:
    with Dump(path) as dump:
        return list(dump.chunks(size)), dump.truncated


@pytest.mark.parametrize("kind", PACK)
def test_chunks_are_whole_lines_and_the_same_for_each_kind_of_archive(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(PACK[kind](TEXT))
    (tmp_path / "plain").write_bytes(TEXT)
    found, truncated = chunks(path)
    assert b"".join(found) == TEXT and not truncated
    assert all(chunk.endswith(b"\n") for chunk in found)
    assert all(len(chunk) <= 50_000 for chunk in found) and len(found) > 10
    assert found == chunks(tmp_path / "plain")[0]


@pytest.mark.parametrize("share", [0.99999, 0.7, 0.31])
@pytest.mark.parametrize("kind", PACK)
def test_all_lines_before_a_break_are_used(kind: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    packed = PACK[kind](TEXT)
    packed = packed[: int(len(packed) * share)]
    path.write_bytes(packed)
    found, truncated = chunks(path)
    assert truncated
    # What Python's own decompressors find before the break is the measure.
    whole = readable(packed, kind)
    assert b"".join(found) == (whole if kind == "plain" else whole[: whole.rfind(b"\n") + 1])
    assert len(whole) > 0.2 * len(TEXT) * share


def readable(packed: bytes, kind: str) -> bytes:
    if kind == "plain":
        return packed
    if kind == "gz":
        return zlib.decompressobj(31).decompress(packed)
    found = b""
    while packed:
        stream = bz2.BZ2Decompressor()
        found += stream.decompress(packed)
        packed = stream.unused_data
    return found


def test_a_cut_between_two_streams_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "dump.bz2"
    path.write_bytes(bz2.compress(TEXT[:100_000]))
    assert chunks(path)[1]


def test_damage_inside_an_archive_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "dump.gz"
    packed = bytearray(gzip.compress(TEXT))
    packed[len(packed) // 2 : len(packed) // 2 + 3000] = b"\xff" * 3000
    path.write_bytes(packed)
    found, truncated = chunks(path)
    assert truncated and len(b"".join(found)) > len(TEXT) / 4


@pytest.mark.parametrize("content", [b"BZh9 no archive", bz2.compress(b"a b ") + b"no archive"])
def test_what_is_no_part_of_an_archive_is_seen(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "text.bz2"
    path.write_bytes(content)
    with Archive(path) as archive:
        assert b"".join(archive.blocks(end=b" ")) == (
            b"" if content.startswith(b"BZh9 ") else b"a b "
        )
    assert "no part of the archive" in archive.problem


def test_a_line_longer_than_a_chunk_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    lines = [item(1), item(2, "long" * 50_000), item(3)]
    path.write_bytes(dumped(lines))
    found, truncated = chunks(path, 1000)
    assert b"".join(found) == dumped(lines) and not truncated
    assert [chunk.count(b"long") > 0 for chunk in found] == [False, True, False]


def test_blocks_of_a_text_end_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"one two three four")
    with Archive(path) as archive:
        assert list(archive.blocks(9, end=b" ")) == [b"one two ", b"three ", b"four"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"entities":{"Q42":{"id":"Q42"}},"success":1}', "one answer of Wikidata's API"),
        (b'{\n "entities": {\n', "one answer of Wikidata's API"),
        (b"<html>", "begins with '<html>'"),
        (b"", "begins with ''"),
        (b'[{"id":"Q1"},{"id":"Q2"}]', "begins with '\\[{"),
        (bz2.compress(TEXT)[:100], "an archive that cannot be read"),
        (gzip.compress(TEXT)[:12], "an archive that cannot be read"),
    ],
)
def test_what_is_no_dump_is_said(content: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "dump.json"
    path.write_bytes(content)
    with pytest.raises(DumpError, match=found) as error:
        chunks(path)
    assert str(path) in str(error.value) and "latest-all.json.bz2" in str(error.value)


def test_entities_without_brackets_are_a_dump(tmp_path: Path) -> None:
    path = tmp_path / "dump.ndjson"
    path.write_bytes(TEXT[2:-3])
    assert not chunks(path)[1]


def test_published_files_are_told_apart() -> None:
    folder = DATA / "wikidata"
    if not folder.is_dir():
        pytest.skip("no wikidata; set DAFNET_DATA to its folder")
    found, truncated = chunks(folder / "sample-dump-20150815.json.gz")
    assert not truncated and b"".join(found).count(b'"type":"item"') > 50
    with pytest.raises(DumpError, match="Special:EntityData"):
        chunks(folder / "wbgetentities-Douglas-Adams.json")
