"""Teacher-forced scores of edits: reliability, generality, locality.

A target token counts when the model puts it first, given the prompt and the target before it.
Reliability asks the edit's own prompt, generality a rephrased one; locality asks whether the
answer to an unrelated prompt is, token by token, what the unedited model says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from .records import TokenBatch, encode_targets


def forward_logits(model: Any, batch: TokenBatch, parameters: Mapping[str, Tensor]) -> Tensor:
    """Logits [n, length, vocabulary] with the given parameters in place of the model's own."""
    return functional_call(
        model,
        dict(parameters),
        kwargs={
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "use_cache": False,
        },
    ).logits


@torch.no_grad()
def predictions(
    model: Any, batch: TokenBatch, parameters: Mapping[str, Tensor], batch_size: int = 16
) -> list[Tensor]:
    """Most probable tokens at the target positions, one tensor a text."""
    found = []
    for part in batch.split(batch_size):
        part = part.to(next(model.parameters()).device)
        best = forward_logits(model, part, parameters).argmax(-1)
        found += [row[mask].cpu() for row, mask in zip(best, part.targets, strict=True)]
    return found


def agreement(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Mean over texts of the fraction of tokens that agree."""
    return fmean((a == b).float().mean().item() for a, b in zip(first, second, strict=True))


def wanted(batch: TokenBatch) -> list[Tensor]:
    return [row[mask] for row, mask in zip(batch.labels, batch.targets, strict=True)]


def sequence_scores(
    model: Any, tok: Any, records: Sequence[Mapping[str, Any]], parameters: Mapping[str, Tensor]
) -> dict[str, float]:
    """Scores of the records' edits in the model with `parameters`, against the model's own.

    Records may lack a rephrased or an unrelated prompt; what none of them has is not scored.
    """
    scores = {}
    targets = [r["target_new"] for r in records]
    batch = encode_targets(tok, [r["prompt"] for r in records], targets)
    scores["reliability"] = agreement(predictions(model, batch, parameters), wanted(batch))
    if rows := [r for r in records if r.get("rephrase_prompt")]:
        batch = encode_targets(
            tok, [r["rephrase_prompt"] for r in rows], [r["target_new"] for r in rows]
        )
        scores["generality"] = agreement(predictions(model, batch, parameters), wanted(batch))
    if rows := [r for r in records if r.get("locality_prompt")]:
        batch = encode_targets(
            tok,
            [r["locality_prompt"] for r in rows],
            [r["locality_ground_truth"] for r in rows],
        )
        scores["locality"] = agreement(
            predictions(model, batch, parameters), predictions(model, batch, {})
        )
    return scores
