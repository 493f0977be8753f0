from __future__ import annotations

import random

import pytest

from easyedit_dafnet.bench import EditRecord
from easyedit_dafnet.bench.streams import draw, stream_seed, usable
from easyedit_dafnet.edit_requests import RequestError

RECORDS = [EditRecord(str(i), f"Place {i} is in", "X", subject=f"Place {i}") for i in range(200)]


def ids(records: list[EditRecord]) -> list[str]:
    return [record.id for record in records]


def test_records_that_do_not_name_their_subject_are_left_out() -> None:
    without = EditRecord("a", "It is in", "X", subject="Place")
    empty = EditRecord("b", "Place is in", "X")
    other = EditRecord("c", "place 7 is in", "X", subject="Place 7")
    assert usable([without, RECORDS[3], empty, other]) == ([RECORDS[3]], 3)


def test_a_stream_is_the_same_everywhere() -> None:
    """Written down: another platform, version or order of the file must not change results."""
    seed = stream_seed(0, "counterfact", 1)
    assert seed == 8530262947764527863
    assert ids(draw(RECORDS, 6, seed)) == ["15", "122", "195", "164", "143", "114"]
    assert draw(random.Random(0).sample(RECORDS, 200), 50, seed) == draw(RECORDS, 50, seed)


def test_shorter_streams_begin_longer_ones() -> None:
    whole = draw(RECORDS, 200, 7)
    assert sorted(ids(whole), key=int) == ids(RECORDS) != ids(whole)
    for count in (0, 1, 10, 100):
        assert draw(RECORDS, count, 7) == whole[:count]


def test_streams_differ_by_seed_data_and_number() -> None:
    seeds = {
        stream_seed(seed, data, stream)
        for seed in range(3)
        for data in ("zsre", "facts")
        for stream in range(20)
    }
    assert len(seeds) == 120
    drawn = {tuple(ids(draw(RECORDS, 10, seed))) for seed in seeds}
    assert len(drawn) == 120
    first = [draw(RECORDS, 1, stream_seed(0, "zsre", s))[0] for s in range(400)]
    assert len(set(ids(first))) > 150  # 173 are expected of 200


def test_no_fact_is_edited_twice_in_a_stream() -> None:
    twice = [EditRecord(f"again {r.id}", r.prompt, "Y", subject=r.subject) for r in RECORDS]
    drawn = draw(RECORDS + twice, 200, 3)
    assert len({record.prompt for record in drawn}) == 200
    assert {record.target_new for record in drawn} == {"X", "Y"}
    other = EditRecord("other", "Place 1 lies on", "Y", subject="Place 1")
    assert len(draw([RECORDS[1], other], 2, 3)) == 2


def test_too_many_edits_are_refused() -> None:
    with pytest.raises(RequestError, match=r"201 edits are asked for, .* only 200 usable records"):
        draw(RECORDS + RECORDS[:1], 201, 0)
