from __future__ import annotations

from tests.refusals import TABLE, rows, table


def test_what_cannot_be_used_is_refused_as_the_table_says_and_changes_nothing() -> None:
    found = list(rows())
    assert len(found) >= 80
    for row in found:
        assert row.is_refused, row
    assert table(found) == TABLE.read_text(encoding="utf-8"), "run `python -m tests.refusals`"
