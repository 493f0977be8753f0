"""Rehearsal: earlier edits are looked at again on the edited model, and put right.

An edit's value is found on the unedited model, where no other edit disturbs it. The more edits
there are, the more they disturb each other. So beside each new edit the model is asked a few of the
earlier ones, those first that were not asked for the longest time. Whichever does not say its
target gets a few steps towards it added to its value, of one size whatever it lacks. How many are
asked does not depend on how many edits there were.

Every other time an edit is asked after a sentence that has nothing to do with it, and its value is
put right for that too: a fact that holds only by its very words becomes louder, and no other.
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
class Form:
    """One way to ask an edit: its tokens and labels, and where it is written."""

    ids: list[int]
    labels: list[int]
    at: int

    @classmethod
    def of(cls, text: TokenBatch) -> Form:
        """text: [1, length]"""
        assert text.at is not None
        length = int(text.attention_mask.sum())
        return cls(
            text.input_ids[0, :length].tolist(), text.labels[0, :length].tolist(), int(text.at)
        )


def together(forms: Sequence[Form]) -> TokenBatch:
    """[n, length]"""
    texts = padded([form.ids for form in forms], [form.labels for form in forms])
    return replace(texts, at=torch.tensor([form.at for form in forms]))


@dataclass(frozen=True)
class Kept:
    """An edit to be asked again: its forms, its keys' row, and how often it was asked."""

    forms: list[Form]
    row: int
    asked: int = 0

    @property
    def form(self) -> Form:
        """The one whose turn it is: the prompt alone every other time."""
        alone, *after = self.forms
        return after[self.asked // 2 % len(after)] if after and self.asked % 2 else alone


@dataclass
class Rehearsal:
    """The edits of a sequence by the number of their prompt, asked the longest ago first.

    earlier: how many are asked beside each new one; without any, none is kept. steps, rate: how
    many steps an answer that lacks gets, and their size in each component of a value. contexts:
    what they are asked after every other time. dtype: of the keys that are kept. keys:
    [1, 1, p, d_in], one a module, in one buffer: small tensors, one an edit, would keep the heap
    from being used again.
    """

    earlier: int
    steps: int = 1
    rate: float = 0.3
    contexts: tuple[str, ...] = ()
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

    def steps_for(self, texts: TokenBatch, as_written: bool) -> Tensor:
        """[n], how many steps each text gets at most.

        `steps` at the subject's token; then, as values are written, as many for each further
        target token.
        """
        further = texts.targets.sum(1) - 1
        return self.steps * (further if as_written else torch.ones_like(further))

    def turn(
        self, texts: Sequence[TokenBatch], keys: Sequence[Tensor]
    ) -> tuple[list[int], TokenBatch, list[Tensor]]:
        """The edits whose turn it is, and the new one; all wait for their next turn.

        The new edit, of texts [1, length], alone and after each context, and keys [1, d_in], takes
        the place of one with the same prompt. Returns the numbers of their prompts, texts
        [n, length] and keys [n, d_in].
        """
        if not self.keys:
            buffers = [key.new_empty(1, 1, ROOM, key.shape[1], dtype=self.dtype) for key in keys]
            self.keys = [Rows(buffer, 0) for buffer in buffers]
        (number,) = prompt_numbers(texts[0]).tolist()
        former, forms = self.edits.pop(number, None), [Form.of(text) for text in texts]
        if former is not None and former.forms[0].at == forms[0].at:
            row = former.row  # the same words, so the same key
        else:
            row = self.keys[0].count
            each = zip(self.keys, keys, strict=True)
            self.keys = [rows.append(key[None, None]) for rows, key in each]
        due = {n: self.edits.pop(n) for n in list(islice(self.edits, self.earlier))}
        due[number] = Kept(forms, row)
        self.edits |= {n: replace(edit, asked=edit.asked + 1) for n, edit in due.items()}
        places = [edit.row for edit in due.values()]
        return (
            list(due),
            together([edit.form for edit in due.values()]),
            [rows.filled[0, 0, places].float() for rows in self.keys],
        )
