"""The values that edits write, improved on the language model itself.

The networks propose for each edit and module a value, which the module is to add to its output at
the subject's last token. A few steps of descent on the edit's own loss then make sure that the
target is said. They see the unedited model, so the order of edits does not matter; a rehearsal asks
the edited one.

There an edit may also be asked with its value as least squares writes it: at the module's input,
whatever that has become by the edit, each module in the share that its key allows, and at every
token that is a little like it. A target of one token bears the difference. One of many tokens hangs
on the value's every detail, and holds only if it is found that way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .language_model import inference_mode_of, target_logits
from .records import TokenBatch
from .signals import LOSS_SCALE, EditedModule

# Mean loss per target token, in nats, at which an edit counts as made.
ENOUGH = 0.05
# Adam's; few steps need short memories.
BETAS = (0.8, 0.95)


def improved(
    model: Any,
    modules: Sequence[EditedModule],
    batch: TokenBatch,
    values: Sequence[Tensor],
    parameters: Mapping[str, Tensor],
    steps: int | Tensor,
    rate: float,
    batch_size: int = 8,
    spreads: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Let values go on from what is given until the targets are said.

    Args:
        model: The language model.
        modules: Where edits are written.
        batch: n texts; with `batch_size` of them a pass is made.
        values: [n, d_out], one a module.
        parameters: By name, in place of the model's own.
        steps: How many of Adam's steps each text gets at most: one number, or [n].
        rate: Size of a step in each component.
        batch_size: How many edits pass the model together.
        spreads: Where given, [n, d_in] a module, KS of `least_squares`: values are asked as they
            are written, which is at each token by how much its input x is alike, x·(kS), in place
            of wholly at the subject's.

    Returns:
        The values [n, d_out], one a module. An edit that is made moves no further and is not asked
        again: its mean loss has come down to ENOUGH. As values are written it must say its target
        too, of which a mean over many tokens is no proof, and one that does so at first stays.
    """
    first = next(model.parameters())
    device, scale = first.device, LOSS_SCALE.get(first.dtype, 1.0)
    limits, parts = torch.as_tensor(steps).expand(len(batch)), []
    for start in range(0, len(batch) if limits.any() else 0, batch_size):
        rows = slice(start, start + batch_size)
        part, limit = batch[rows].to(device), limits[rows].to(device)
        tensors = [v[rows].detach().clone().to(device).requires_grad_() for v in values]
        shares = None if spreads is None else [s[rows].to(device) for s in spreads]
        optimizer = torch.optim.Adam(tensors, lr=rate, betas=BETAS)

        def look(left: Tensor) -> tuple[Tensor, Tensor]:
            asked = [t[left] for t in tensors]  # noqa: B023 (called in the same turn)
            written = None if shares is None else [s[left] for s in shares]  # noqa: B023
            return _losses(model, modules, part[left], asked, parameters, written)  # noqa: B023

        left = limit.nonzero().flatten()
        # Most edits of a rehearsal are made already: found without gradients, that costs a third.
        if len(left):
            with inference_mode_of(model), torch.no_grad():
                losses, said = look(left)
            left = left[~(losses <= ENOUGH if spreads is None else said)]
        for step in range(int(limit.max()) if len(left) else 0):
            with inference_mode_of(model), torch.enable_grad():
                losses, said = look(left)
                # What is not a number is not made.
                made = losses.detach() <= ENOUGH
                going = ~(made if spreads is None else made & said) & (limit[left] > step)
                if not going.any():
                    break
                gradients = torch.autograd.grad(scale * losses[going].sum(), tensors)
            left = left[going]
            before = [t.detach().clone() for t in tensors]
            for tensor, gradient in zip(tensors, gradients, strict=True):
                tensor.grad = gradient / scale
            optimizer.step()
            with torch.no_grad():
                for tensor, old in zip(tensors, before, strict=True):
                    tensor.copy_(old.index_copy(0, left, tensor[left]))
        parts.append([t.detach() for t in tensors])
    if not parts:
        return list(values)
    each = zip(*parts, strict=True)
    return [torch.cat(rows).to(v.device) for rows, v in zip(each, values, strict=True)]


def _losses(
    model: Any,
    modules: Sequence[EditedModule],
    batch: TokenBatch,
    values: Sequence[Tensor],
    parameters: Mapping[str, Tensor],
    spreads: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """[n], mean negative log likelihood per target token with the values added, and [n], whether
    each of the tokens is the most probable."""
    assert batch.at is not None
    n, length = batch.input_ids.shape
    where = torch.arange(n, device=batch.at.device) * length + batch.at

    def adding(value: Tensor, spread: Tensor | None) -> Callable[..., Tensor]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
            if spread is None:
                rows = y.reshape(n * length, -1)
                return rows.index_add(0, where.to(y.device), value.to(y.device, y.dtype)).view_as(y)
            x = inputs[0].reshape(n, length, -1).float()
            share = x @ spread.to(x.device)[..., None]  # [n, length, 1]
            return y + (share * value.to(x.device)[:, None]).to(y.dtype).view_as(y)

        return hook

    with ExitStack() as stack:
        for m, (module, value) in enumerate(zip(modules, values, strict=True)):
            hook = adding(value, None if spreads is None else spreads[m])
            handle = model.get_submodule(module.name).register_forward_hook(hook)
            stack.callback(handle.remove)
        logits = target_logits(model, batch, parameters).float()
    labels = batch.labels[batch.targets].to(logits.device)
    each = F.cross_entropy(logits, labels, reduction="none")
    owner = batch.targets.nonzero()[:, 0].to(logits.device)
    counts = batch.targets.sum(1).to(logits.device)
    wrong = (logits.detach().argmax(-1) != labels).to(each.dtype)
    sums = [each.new_zeros(n).index_add(0, owner, t) for t in (each, wrong)]
    return sums[0] / counts, sums[1] == 0
