"""Losses of edit training: reliability, generality and locality (paper, 3.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .records import TokenBatch, encode_targets
from .scoring import forward_logits
from .signals import target_log_probs


@dataclass(frozen=True)
class LossTerm:
    """One named kind of loss: on these texts, with this weight in the sum.

    `keep` asks that the predictions stay as the unedited model's, else the targets are learnt.
    """

    name: str
    kind: Literal["reliability", "generality", "locality"]
    weight: float
    batch: TokenBatch

    @property
    def keep(self) -> bool:
        return self.kind == "locality"


def loss_texts(
    tok: Any, records: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Literal["reliability", "generality", "locality"], TokenBatch]]:
    """The named kinds of loss that the records give rise to."""

    def ask(prompts: list[str], key: str, rows: Sequence[Mapping[str, Any]]) -> TokenBatch:
        return encode_targets(tok, prompts, [r[key] for r in rows])

    yield "reliability", "reliability", ask([r["prompt"] for r in records], "target_new", records)
    if rows := [r for r in records if r.get("rephrase_prompt")]:
        yield (
            "rephrase",
            "generality",
            ask([r["rephrase_prompt"] for r in rows], "target_new", rows),
        )
    if rows := [r for r in records if r.get("prefix")]:
        yield (
            "prefix",
            "generality",
            ask([f"{r['prefix']} {r['prompt']}" for r in rows], "target_new", rows),
        )
    if rows := [r for r in records if r.get("locality_prompt")]:
        yield (
            "locality",
            "locality",
            ask([r["locality_prompt"] for r in rows], "locality_ground_truth", rows),
        )


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the target tokens."""
    return -target_log_probs(logits, labels).sum()


def divergence(unedited: Tensor, edited: Tensor, targets: Tensor) -> Tensor:
    """Sum over the target positions of KL(unedited || edited); logits [n, length, vocabulary]."""
    before = unedited[targets].float().log_softmax(-1)
    after = edited[targets].float().log_softmax(-1)
    return torch.nn.functional.kl_div(after, before, reduction="sum", log_target=True)


def backward_losses(
    model: Any,
    terms: Sequence[LossTerm],
    parameters: Mapping[str, Tensor],
    batch_size: int,
) -> dict[str, float]:
    """Mean loss per target token of each term; the gradients of the weighted sum flow back.

    They are added up part by part at `parameters`, so the memory is that of one part.
    Returns {term name: loss times weight, "loss": their sum}.
    """
    device = next(model.parameters()).device
    losses = {}
    for term in terms:
        tokens, total = int(term.batch.targets.sum()), 0.0
        for part in term.batch.split(batch_size):
            part = part.to(device)
            logits = forward_logits(model, part, parameters)
            if term.keep:
                with torch.no_grad():
                    unedited = forward_logits(model, part, {})
                value = divergence(unedited, logits, part.targets)
            else:
                value = negative_log_likelihood(logits, part.labels)
            value = value * (term.weight / tokens)
            value.backward()
            total += value.item()
        losses[term.name] = total
    losses["loss"] = sum(losses.values())
    return losses
