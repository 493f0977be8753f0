"""Rehearsal: earlier edits are looked at again on the edited model, and put right.

An edit's value is found on the unedited model, where no other edit disturbs it. The more edits
there are, the more they disturb each other. So beside each new edit the model is asked a few of the
earlier ones, those first that were not asked for the longest time, and what they still lack is
added to their values. The cost of an edit does not depend on how many there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from .records import TokenBatch, joined, prompt_numbers


@dataclass(frozen=True)
class Kept:
    """An edit to be asked again: its text [1, length], and its key [1, d_in] at each module."""

    text: TokenBatch
    keys: list[Tensor]

    @property
    def bytes(self) -> int:
        tensors = [t for t in vars(self.text).values() if t is not None]
        return sum(t.numel() * t.element_size() for t in [*tensors, *self.keys])


@dataclass(frozen=True)
class Rehearsal:
    """The edits of a sequence by the number of their prompt, asked the longest ago first."""

    edits: dict[int, Kept] = field(default_factory=dict)

    def copy(self) -> Rehearsal:
        return Rehearsal(dict(self.edits))

    @property
    def bytes(self) -> int:
        return sum(edit.bytes for edit in self.edits.values())

    def turn(
        self, text: TokenBatch, keys: Sequence[Tensor], earlier: int, dtype: torch.dtype
    ) -> tuple[TokenBatch, list[Tensor]]:
        """Up to `earlier` edits whose turn it is, and the new one; all wait for their next turn.

        The new edit, of text [1, length] and keys [1, d_in], takes the place of one with the same
        prompt. dtype: of the keys that are kept. Returns texts [n, length] and keys [n, d_in].
        """
        (number,) = prompt_numbers(text).tolist()
        self.edits.pop(number, None)
        due = {number: self.edits.pop(number) for number in list(islice(self.edits, earlier))}
        due[number] = Kept(text, [key.to(dtype) for key in keys])
        self.edits.update(due)
        asked = due.values()
        at_modules = zip(*(edit.keys for edit in asked), strict=True)
        return joined([edit.text for edit in asked]), [torch.cat(k).float() for k in at_modules]
