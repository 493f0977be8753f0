"""Losses of edit training: reliability, generality and locality (paper, 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any, Literal

import torch
from torch import Tensor

from .edit_requests import RequestError
from .language_model import LanguageModel, Text, texts_of
from .prompts import Wording, after_context, chat_form
from .records import AS_GIVEN, context_length, encode_targets, encode_worded

Kind = Literal["reliability", "generality", "locality", "same_subject"]
# The named losses and what they are about.
KINDS: dict[str, Kind] = {
    "reliability": "reliability",
    "rephrase": "generality",
    "prefix": "generality",
    "locality": "locality",
    "same_subject": "same_subject",
    "passage": "locality",
}
# Those that ask for what the unedited model says, in place of a target.
KEPT: tuple[Kind, ...] = ("locality", "same_subject")
# What of a record is read.
TEXT_FIELDS = (
    "prompt",
    "target_new",
    "subject",
    "rephrase_prompt",
    "prefix",
    "locality_prompt",
    "locality_ground_truth",
    "same_subject_prompt",
    "same_subject_ground_truth",
    "target_space",
)


@dataclass(frozen=True, eq=False)
class LossTerm:
    """One named kind of loss: on these texts, with this weight in the sum.

    `keep` asks that the predictions stay as the unedited model's, which the texts then carry;
    else the targets are learnt.
    """

    name: str
    weight: float
    texts: list[Text]

    @property
    def keep(self) -> bool:
        return KINDS[self.name] in KEPT

    @property
    def tokens(self) -> int:
        """Target tokens of all texts."""
        return sum(len(text.target_labels) for text in self.texts)


def record_texts(
    tok: Any,
    record: Mapping[str, Any],
    model: Any,
    at_subject: bool = False,
    wording: Wording = AS_GIVEN,
) -> dict[str, Text]:
    """The texts of a record by the loss they serve; those that it does not have are left out.

    record: its prompt is put as `records.worded` does; the other texts are by `wording`.
    at_subject: the edit's own says where its subject ends.
    Raises RequestError for a text without target tokens or longer than the model's context.
    """
    prompt, target = record["prompt"], record["target_new"]

    def form(prompt: str) -> str:
        return chat_form(tok, prompt) if wording.use_chat_template else prompt

    asked = {"reliability": (prompt, target)}
    if record.get("rephrase_prompt"):
        asked["rephrase"] = (form(record["rephrase_prompt"]), target)
    if record.get("prefix"):
        asked["prefix"] = (after_context(prompt, record["prefix"]), target)
    if record.get("locality_prompt"):
        asked["locality"] = (form(record["locality_prompt"]), record["locality_ground_truth"])
    if record.get("same_subject_prompt"):
        truth = record["same_subject_ground_truth"]
        asked["same_subject"] = (form(record["same_subject_prompt"]), truth)
    names = [f"the {name} text of {shorten(prompt, 60)!r}" for name in asked]
    prompts, answers = zip(*asked.values(), strict=True)
    spaces = [record.get("target_space")] * len(asked)
    texts = texts_of(encode_targets(tok, prompts, answers, names, spaces))
    limit = context_length(model)
    for name, text in zip(names, texts, strict=True):
        if limit is not None and len(text) > limit:
            raise RequestError(
                f"{name} takes {len(text)} tokens, but the model's context holds {limit}; shorten "
                "it or leave the record out."
            )
    found = dict(zip(asked, texts, strict=True))
    if at_subject:
        at = encode_worded(tok, [record], model, at_subject).at
        found["reliability"] = replace(found["reliability"], at=at)
    return found


def negative_log_likelihood(log_q: Tensor, labels: Tensor, gradient: Tensor) -> Tensor:
    """Sum over the target tokens of -log q(label); its gradient at the logits is q - 1[label].

    log_q: [targets, vocabulary]; labels: [targets]; gradient: q, in which the rest is taken off.
    """
    rows = torch.arange(len(labels), device=labels.device)
    gradient[rows, labels] -= 1
    return -log_q[rows, labels].sum()


def divergence(log_q: Tensor, log_p: Tensor, gradient: Tensor) -> Tensor:
    """Sum over the targets of KL(p || q); its gradient at the logits of q is q - p.

    log_q (edited), log_p (unedited): [targets, vocabulary]; gradient: q, from which p is taken.
    """
    p = log_p.exp()
    gradient -= p
    return p.mul_(log_p - log_q).sum()


def backward_losses(
    model: LanguageModel,
    terms: Sequence[LossTerm],
    parameters: Mapping[str, Tensor],
    batch_size: int,
) -> dict[str, float]:
    """Mean loss per target token of each term; the gradients of the weighted sum flow back.

    `batch_size` texts share a pass, whatever their terms. Gradients are added up pass by pass at
    `parameters` and at whatever else the model's hooks bring in, so the memory is that of one.
    Returns {term name: loss times weight, "loss": their sum}.
    """
    texts = [text for term in terms for text in term.texts]
    owners = iter([term for term in terms for _ in term.texts])
    totals = {term.name: torch.zeros((), dtype=torch.float32) for term in terms}
    for pack in model.packs(texts, batch_size):
        logits = model.logits(pack, parameters)
        # Written out, not left to autograd: the vocabulary is wide, and each pass over it counts.
        log_q = logits.detach().float().log_softmax(-1)
        gradient = log_q.exp()
        owned = [(next(owners), text) for text in pack]
        start = 0
        for term in dict.fromkeys(term for term, _ in owned):
            group = [text for owner, text in owned if owner is term]
            labels = torch.cat([text.target_labels for text in group]).to(logits.device)
            rows = slice(start, start := start + len(labels))
            if term.keep:
                log_p = model.unedited_log_probs(group)
                value = divergence(log_q[rows], log_p, gradient[rows])
            else:
                value = negative_log_likelihood(log_q[rows], labels, gradient[rows])
            scale = term.weight / term.tokens
            gradient[rows] *= scale
            totals[term.name] += scale * value.cpu()
        logits.backward(gradient.to(logits.dtype))
    losses = {name: value.item() for name, value in totals.items()}
    losses["loss"] = sum(losses.values())
    return losses
