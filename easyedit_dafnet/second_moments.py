"""Second moments of the inputs of modules over the tokens of plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from .records import token_ids

PIECE = 512  # tokens that are read together at most; longer passages are cut
BATCH = 4096  # tokens of a batch, with padding


def pieces_of(
    tok: Any, passages: Iterable[str], tokens: int, context: int | None = None
) -> list[Tensor]:
    """The text's first tokens, [length] each; fewer than wanted when the text is short.

    context: tokens that the model takes at most.
    """
    limit = min(PIECE, getattr(tok, "model_max_length", PIECE), context or PIECE)
    pieces: list[Tensor] = []
    left = tokens
    for passage in passages:
        ids = torch.tensor(token_ids(tok, [passage])[0][:left])
        pieces += [piece for piece in ids.split(limit) if len(piece)]
        left -= len(ids)
        if left == 0:
            break
    return pieces


def sums_of_inputs(
    model: Any, names: Sequence[str], pieces: Sequence[Tensor], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Sums of x xᵀ over all tokens of the pieces, [inputs, inputs] by module name."""
    modules = {name: model.get_submodule(name) for name in names}
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    # Which positions of the batch are tokens, and whose inputs were seen in this pass.
    mask = torch.empty(0)
    seen: set[str] = set()

    def add(name: str, module: Any, inputs: tuple[Tensor, ...]) -> None:
        width = inputs[0].shape[-1]  # OPT's come as one row of tokens
        x = inputs[0].reshape(-1, width)[mask.flatten()].to(dtype)
        sums[name] = sums.get(name, x.new_zeros(width, width)).addmm_(x.T, x)
        seen.add(name)
        if len(seen) == len(modules):
            raise _AllSeen  # what comes after it is not needed

    hooks = [m.register_forward_pre_hook(partial(add, name)) for name, m in modules.items()]
    total = sum(map(len, pieces))
    try:
        with torch.no_grad(), tqdm(total=total, unit="tok", desc="second moments") as bar:
            for ids, mask in _batches(pieces):
                ids, mask = ids.to(device), mask.to(device)
                seen.clear()
                with suppress(_AllSeen):
                    model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
                bar.update(int(mask.sum()))
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def _batches(pieces: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and whether they are tokens, [pieces, length] each, longest pieces first."""
    left = sorted(pieces, key=len, reverse=True)
    while left:
        count = max(1, BATCH // len(left[0]))
        batch, left = left[:count], left[count:]
        mask = pad_sequence([torch.ones_like(p) for p in batch], batch_first=True).bool()
        yield pad_sequence(batch, batch_first=True), mask


class _AllSeen(Exception):
    """The pass has gone far enough."""
