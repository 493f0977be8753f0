"""Teacher-forced scores of edits: reliability, generality, locality.

A target token counts when the model puts it first, given the prompt and the target before it.
Reliability asks the edit's own prompt, generality a rephrased one; locality asks whether the
answer to an unrelated prompt is, token by token, what the unedited model says; locality of the same
subject asks that of another question about the edit's subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .language_model import LanguageModel, Text
from .losses import KEPT

SCORES = {
    "reliability": "reliability",
    "generality": "rephrase",
    "locality": "locality",
    "same_subject": "same_subject",
}


@torch.no_grad()
def predictions(
    model: LanguageModel,
    texts: Sequence[Text],
    parameters: Mapping[str, Tensor],
    batch_size: int = 16,
) -> list[Tensor]:
    """Most probable tokens at the target positions, one tensor a text."""
    found: list[Tensor] = []
    for pack in model.packs(texts, batch_size):
        best = model.logits(pack, parameters).argmax(-1).cpu()
        found += best.split([len(text.target_labels) for text in pack])
    return found


def agreement(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[float]:
    """The fraction of tokens that agree, text by text."""
    return [(a == b).float().mean().item() for a, b in zip(first, second, strict=True)]


def sequence_scores(
    model: LanguageModel,
    records: Sequence[Mapping[str, Text]],
    parameters: Mapping[str, Tensor],
) -> dict[str, list[float]]:
    """Scores of the records' edits in the model with `parameters`, against the model's own.

    records: the texts of each (losses.record_texts), those of locality with what the unedited
    model predicts. A score has one number a record that has a text for it: records may lack a
    rephrased or an unrelated prompt.
    """
    scores = {}
    for score, name in SCORES.items():
        texts = [record[name] for record in records if name in record]
        if score in KEPT:
            wanted = [model.unedited_log_probs([text]).argmax(-1).cpu() for text in texts]
        else:
            wanted = [text.target_labels for text in texts]
        scores[score] = agreement(predictions(model, texts, parameters), wanted)
    return scores
