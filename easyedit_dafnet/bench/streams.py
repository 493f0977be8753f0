"""Which records are edited, and in which order: drawn once for all methods.

Stream s of a data set is one order of its records, and N edits are its first N. So the streams of
N = 1, 10, 100 and 1,000 are nested: what changes between them is only how many edits follow,
not which facts happen to be drawn, and the unedited model's answers are computed once for all N.
Different streams are drawn independently, and may share records.

The order is that of a hash of the seed and the record's id. It depends on no library's random
numbers, nor on the machine, the method or the order of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from ..edit_records import EditRecord
from ..edit_requests import RequestError


def usable(records: Sequence[EditRecord]) -> tuple[list[EditRecord], int]:
    """Records whose prompt names their subject, and how many do not.

    Methods that write at the subject's tokens could not edit the others, so no method is given
    them.
    """
    kept = [record for record in records if record.subject and record.subject in record.prompt]
    return kept, len(records) - len(kept)


def stream_seed(seed: int, data: str, stream: int) -> int:
    """The seed with which to `draw` a stream of the data set of this name; 64 bits."""
    return int.from_bytes(_hash(seed, data, stream)[:8], "big")


def draw(records: Sequence[EditRecord], count: int, seed: int) -> list[EditRecord]:
    """The first `count` records of the order that belongs to the seed.

    No two of them have the same subject and prompt: the later one would contradict the earlier.
    Raises RequestError where the records do not suffice.
    """
    chosen: dict[tuple[str, str], EditRecord] = {}
    for record in sorted(records, key=lambda record: _hash(seed, record.id)):
        chosen.setdefault((record.subject, record.prompt), record)
    if count > len(chosen):
        raise RequestError(
            f"{count} edits are asked for, but the data set has only {len(chosen)} usable records "
            "with different prompts; ask for fewer edits or give more data."
        )
    return list(chosen.values())[:count]


def _hash(*parts: object) -> bytes:
    return sha256("\n".join(map(str, parts)).encode()).digest()
