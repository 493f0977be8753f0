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
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .language_model import inference_mode_of, target_logits
from .records import TokenBatch, first_answers, stacked
from .signals import LOSS_SCALE, EditedModule

# Mean loss per target token, in nats, at which an edit counts as made.
ENOUGH = 0.05
# Nats by which the answers to other questions may have moved.
SETTLED = 0.1
# Of two prompts, overlap of the answers' probabilities from which on they may ask the same.
SAME_QUESTION = 0.6
# Adam's; few steps need short memories.
BETAS = (0.8, 0.95)


@dataclass(frozen=True)
class Others:
    """Other questions about the subjects of n edits, k each, whose answers are to stay.

    texts: k times [n, length], each asked for one token. weight: of the mean divergence of an
    edit's questions beside its own mean loss. log_probs: [k, n, vocabulary], before values are
    added; asks: [k, n], 1 for those that are asked.
    """

    texts: Sequence[TokenBatch]
    weight: float
    log_probs: Tensor | None = None
    asks: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> Others:
        """Those of some of the edits."""
        return replace(
            self,
            texts=[text[rows] for text in self.texts],
            log_probs=None if self.log_probs is None else self.log_probs[:, rows],
            asks=None if self.asks is None else self.asks[:, rows],
        )

    def to(self, device: torch.device) -> Others:
        return replace(self, texts=[text.to(device) for text in self.texts])

    @torch.no_grad()
    def answered(self, model: Any, batch: TokenBatch, parameters: Mapping[str, Tensor]) -> Others:
        """With what the model says, its parameters replaced by those given.

        A question that it answers as it answers the edit's own prompt is not asked: it may be
        the same one in other words.
        """
        with inference_mode_of(model):
            texts = stacked([first_answers(batch), *self.texts])
            logits = target_logits(model, texts, parameters).float()
        log_probs = logits.log_softmax(-1).view(1 + len(self.texts), len(batch), -1)
        alike = (log_probs[1:] / 2 + log_probs[:1] / 2).exp().sum(-1)
        return replace(self, log_probs=log_probs[1:], asks=(alike < SAME_QUESTION).float())

    def moved(self, log_q: Tensor) -> Tensor:
        """[n], mean of KL(unedited || edited) over an edit's questions.

        log_q: [k, n, vocabulary], of the edited model.
        """
        assert self.log_probs is not None and self.asks is not None
        divergence = (self.log_probs.exp() * (self.log_probs - log_q)).sum(-1)
        return (divergence * self.asks).sum(0) / self.asks.sum(0).clamp(min=1)


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
    others: Others | None = None,
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
        others: Other questions about the subjects, whose answers are to stay; not with `spreads`.

    Returns:
        The values [n, d_out], one a module. An edit that is made moves no further and is not asked
        again: its mean loss has come down to ENOUGH, and with other questions what they moved by
        to SETTLED. As values are written it must say its target too, of which a mean over many
        tokens is no proof, and one that does so at first stays.
    """
    first = next(model.parameters())
    device, scale = first.device, LOSS_SCALE.get(first.dtype, 1.0)
    limits, parts = torch.as_tensor(steps).expand(len(batch)), []
    for start in range(0, len(batch) if limits.any() else 0, batch_size):
        rows = slice(start, start + batch_size)
        part, limit = batch[rows].to(device), limits[rows].to(device)
        tensors = [v[rows].detach().clone().to(device).requires_grad_() for v in values]
        shares = None if spreads is None else [s[rows].to(device) for s in spreads]
        kept: Others | None = None  # what the other questions of this part are to stay at
        optimizer = torch.optim.Adam(tensors, lr=rate, betas=BETAS)

        def look(left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            asked = [t[left] for t in tensors]  # noqa: B023 (called in the same turn)
            written = None if shares is None else [s[left] for s in shares]  # noqa: B023
            beside = kept and kept[torch.searchsorted(asking, left)]  # noqa: B023
            return _losses(model, modules, part[left], asked, parameters, written, beside)  # noqa: B023

        left = limit.nonzero().flatten()
        # Most edits of a rehearsal are made already: found without gradients, that costs a third.
        if len(left) and others is None:
            with inference_mode_of(model), torch.no_grad():
                losses, said, _ = look(left)
            left = left[~(losses <= ENOUGH if spreads is None else said)]
        asking = left
        if others is not None and len(left):
            kept = others[rows].to(device)[left].answered(model, part[left], parameters)
        for step in range(int(limit.max()) if len(left) else 0):
            with inference_mode_of(model), torch.enable_grad():
                losses, said, moved = look(left)
                # What is not a number is not made.
                made = losses.detach() <= ENOUGH
                made = made if spreads is None else made & said
                going = ~(made & (moved.detach() <= SETTLED)) & (limit[left] > step)
                if not going.any():
                    break
                # An edit that is made goes on for the sake of its other questions alone.
                total = (
                    losses[going & ~made].sum()
                    + (kept.weight if kept else 0.0) * moved[going].sum()
                )
                gradients = torch.autograd.grad(scale * total, tensors)
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
    others: Others | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What becomes of n texts with the values added, [n] each.

    The mean negative log likelihood per target token; whether each of the tokens is the most
    probable; and by how many nats the answers to other questions are moved, the mean over those of
    an edit.
    """
    n, asked = len(batch), batch
    if others is not None:
        asked = stacked([batch, *others.texts])
        copies = 1 + len(others.texts)
        values = [value.repeat(copies, 1) for value in values]
    assert asked.at is not None
    count, length = asked.input_ids.shape
    where = torch.arange(count, device=asked.at.device) * length + asked.at

    def adding(value: Tensor, spread: Tensor | None) -> Callable[..., Tensor]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
            if spread is None:
                rows = y.reshape(count * length, -1)
                return rows.index_add(0, where.to(y.device), value.to(y.device, y.dtype)).view_as(y)
            x = inputs[0].reshape(count, length, -1).float()
            share = x @ spread.to(x.device)[..., None]  # [count, length, 1]
            return y + (share * value.to(x.device)[:, None]).to(y.dtype).view_as(y)

        return hook

    with ExitStack() as stack:
        for m, (module, value) in enumerate(zip(modules, values, strict=True)):
            hook = adding(value, None if spreads is None else spreads[m])
            handle = model.get_submodule(module.name).register_forward_hook(hook)
            stack.callback(handle.remove)
        logits = target_logits(model, asked, parameters).float()
    labels = batch.labels[batch.targets].to(logits.device)
    logits, beside = logits.split([len(labels), len(logits) - len(labels)])
    each = F.cross_entropy(logits, labels, reduction="none")
    owner = batch.targets.nonzero()[:, 0].to(logits.device)
    counts = batch.targets.sum(1).to(logits.device)
    wrong = (logits.detach().argmax(-1) != labels).to(each.dtype)
    sums = [each.new_zeros(n).index_add(0, owner, t) for t in (each, wrong)]
    moved = each.new_zeros(n)
    if others is not None:
        moved = others.moved(beside.log_softmax(-1).view(-1, n, beside.shape[-1]))
    return sums[0] / counts, sums[1] == 0, moved
