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
    """The edits of a sequence by the number of their prompt, asked the longest ago first.

    earlier: how many are asked beside each new one; without any, none is kept. rate: the size of a
    step in each component of a value. dtype: of the keys that are kept.
    """

    earlier: int
    rate: float = 0.3
    dtype: torch.dtype = torch.float32
    edits: dict[int, Kept] = field(default_factory=dict)

    def copy(self) -> Rehearsal:
        return replace(self, edits=dict(self.edits))

    @property
    def bytes(self) -> int:
        return sum(edit.bytes for edit in self.edits.values())

    def turn(self, text: TokenBatch, keys: Sequence[Tensor]) -> tuple[TokenBatch, list[Tensor]]:
        """The edits whose turn it is, and the new one; all wait for their next turn.

        The new edit, of text [1, length] and keys [1, d_in], takes the place of one with the same
        prompt. Returns texts [n, length] and keys [n, d_in].
        """
        (number,) = prompt_numbers(text).tolist()
        self.edits.pop(number, None)
        due = {number: self.edits.pop(number) for number in list(islice(self.edits, self.earlier))}
        due[number] = Kept(text, [key.to(self.dtype) for key in keys])
        self.edits.update(due)
        asked = due.values()
        at_modules = zip(*(edit.keys for edit in asked), strict=True)
        return joined([edit.text for edit in asked]), [torch.cat(k).float() for k in at_modules]
