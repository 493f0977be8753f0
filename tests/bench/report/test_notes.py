from __future__ import annotations

import pytest

from easyedit_dafnet.bench.report.notes import whole_command


@pytest.mark.parametrize(
    ("typed", "whole"),
    [
        ("bench --suite quick --out a", "bench --suite quick --out a"),
        ("bench --only data=facts,method=FT n=1 --suite quick", "bench --suite quick"),
        ("bench --suite quick --only=method=FT", "bench --suite quick"),
        ("bench --data 'a b.json' --only method=FT", "bench --data 'a b.json'"),
    ],
)
def test_the_command_of_a_part_names_the_whole(typed: str, whole: str) -> None:
    assert whole_command(typed) == whole


def test_no_command_stays_none() -> None:
    assert whole_command(None) is None
