"""The values that edits write, improved on the language model itself.

The networks propose for each edit and module a value, which the module is to add to its output at
the subject's last token. A few steps of descent on the edit's own loss then make sure that the
target is said. They see the unedited model, so the order of edits does not matter; a rehearsal asks
the edited one.
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
    steps: int,
    rate: float,
    batch_size: int = 8,
) -> list[Tensor]:
    """Values [n, d_out], one a module, after at most `steps` of Adam at `rate`.

    parameters: by name, in place of the model's own. `batch_size` edits pass the model together;
    one that is made moves no further, and is not asked again.
    """
    first = next(model.parameters())
    device, scale = first.device, LOSS_SCALE.get(first.dtype, 1.0)
    parts = []
    for start in range(0, len(batch) if steps else 0, batch_size):
        rows = slice(start, start + batch_size)
        part = batch[rows].to(device)
        tensors = [v[rows].detach().clone().to(device).requires_grad_() for v in values]
        optimizer = torch.optim.Adam(tensors, lr=rate, betas=BETAS)
        # Most edits of a rehearsal are made already: found without gradients, that costs a third.
        with inference_mode_of(model), torch.no_grad():
            losses = _losses(model, modules, part, tensors, parameters)
        left = (~(losses <= ENOUGH)).nonzero().flatten()  # what is not a number is not made
        for _ in range(steps if len(left) else 0):
            with inference_mode_of(model), torch.enable_grad():
                asked = [t[left] for t in tensors]
                losses = _losses(model, modules, part[left], asked, parameters)
                going = ~(losses.detach() <= ENOUGH)
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
) -> Tensor:
    """[n], mean negative log likelihood per target token, with the values written."""
    assert batch.at is not None
    n, length = batch.input_ids.shape
    where = torch.arange(n, device=batch.at.device) * length + batch.at

    def adding(value: Tensor) -> Callable[..., Tensor]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], y: Tensor) -> Tensor:
            rows = y.reshape(n * length, -1)
            return rows.index_add(0, where.to(y.device), value.to(y.device, y.dtype)).view_as(y)

        return hook

    with ExitStack() as stack:
        for module, value in zip(modules, values, strict=True):
            handle = model.get_submodule(module.name).register_forward_hook(adding(value))
            stack.callback(handle.remove)
        logits = target_logits(model, batch, parameters).float()
    labels = batch.labels[batch.targets].to(logits.device)
    each = F.cross_entropy(logits, labels, reduction="none")
    owner = batch.targets.nonzero()[:, 0].to(logits.device)
    counts = batch.targets.sum(1).to(logits.device)
    return each.new_zeros(n).index_add(0, owner, each) / counts
