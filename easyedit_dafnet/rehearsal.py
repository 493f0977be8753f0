"""Rehearsal: earlier edits are looked at again on the edited model, and put right.

An edit's value is found on the unedited model, where no other edit disturbs it. The more edits
there are, the more they disturb each other. So beside each new edit the model is asked a few of the
earlier ones, those first that were not asked for the longest time. Whichever does not say its
target gets a step towards it added to its value, of one size whatever it lacks. How many are asked
does not depend on how many edits there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from .networks import Rows
from .records import TokenBatch, padded, prompt_numbers

ROOM = 64  # edits that there is room for at first


@dataclass(frozen=True)
class Kept:
    """An edit to be asked again: its tokens and labels, where it is written, its keys' row."""

    ids: list[int]
    labels: list[int]
    at: int
    row: int


@dataclass
class Rehearsal:
    """The edits of a sequence by the number of their prompt, asked the longest ago first.

    earlier: how many are asked beside each new one; without any, none is kept. rate: the size of a
    step in each component of a value. dtype: of the keys that are kept. keys: [1, 1, p, d_in], one
    a module, in one buffer: small tensors, one an edit, would keep the heap from being used again.
    """

    earlier: int
    rate: float = 0.3
    dtype: torch.dtype = torch.float32
    edits: dict[int, Kept] = field(default_factory=dict)
    keys: list[Rows] = field(default_factory=list)

    def copy(self) -> Rehearsal:
        """One that can be gone on with, while this one stays valid until it is gone on with."""
        return replace(self, edits=dict(self.edits))

    @property
    def bytes_per_edit(self) -> int:
        """Memory of an edit's keys; its tokens take little beside them."""
        return sum(rows.bytes_per_edit for rows in self.keys)

    def turn(self, text: TokenBatch, keys: Sequence[Tensor]) -> tuple[TokenBatch, list[Tensor]]:
        """The edits whose turn it is, and the new one; all wait for their next turn.

        The new edit, of text [1, length] and keys [1, d_in], takes the place of one with the same
        prompt. Returns texts [n, length] and keys [n, d_in].
        """
        assert text.at is not None
        if not self.keys:
            buffers = [key.new_empty(1, 1, ROOM, key.shape[1], dtype=self.dtype) for key in keys]
            self.keys = [Rows(buffer, 0) for buffer in buffers]
        (number,) = prompt_numbers(text).tolist()
        length, row = int(text.attention_mask.sum()), self.keys[0].count
        ids, labels = (t[0, :length].tolist() for t in (text.input_ids, text.labels))
        self.edits.pop(number, None)
        due = {n: self.edits.pop(n) for n in list(islice(self.edits, self.earlier))}
        due[number] = Kept(ids, labels, int(text.at), row)
        self.edits.update(due)
        self.keys = [
            rows.append(key[None, None]) for rows, key in zip(self.keys, keys, strict=True)
        ]
        asked = list(due.values())
        texts = padded([edit.ids for edit in asked], [edit.labels for edit in asked])
        places = [edit.row for edit in asked]
        return replace(texts, at=torch.tensor([edit.at for edit in asked])), [
            rows.filled[0, 0, places].float() for rows in self.keys
        ]
