"""How edit requests and other texts become tokens, and where in them an edit is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .edit_requests import RequestError, check_requests
from .subjects import subject_of

IGNORE = -100  # label of a position that no loss reads, as everywhere in transformers


@dataclass(frozen=True)
class TokenBatch:
    """Texts with the tokens to be predicted in them, padded on the right.

    input_ids, attention_mask, labels: [n, length]. labels[i, t] is the token that the logits at
    position t should predict, or -100 where nothing is asked. at: [n], the token that each edit is
    written at, or None where edits are written at all tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    at: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """[n, length], true where a target token is predicted."""
        return self.labels != IGNORE

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> TokenBatch:
        """The given rows, without the padding that they no longer need."""
        mask = self.attention_mask[rows]
        length = int(mask.sum(1).max())
        return TokenBatch(
            self.input_ids[rows][:, :length],
            mask[:, :length],
            self.labels[rows][:, :length],
            None if self.at is None else self.at[rows],
        )

    def split(self, size: int) -> list[TokenBatch]:
        return [self[i : i + size] for i in range(0, len(self), size)]

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.labels.to(device),
            None if self.at is None else self.at.to(device),
        )


def padded(ids: list[list[int]], labels: list[list[int]]) -> TokenBatch:
    """Texts given as lists of their tokens and labels."""

    def stack(rows: list[list[int]], value: int) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], True, value)

    return TokenBatch(
        stack(ids, 0), stack([[1] * len(row) for row in ids], 0), stack(labels, IGNORE)
    )


def encode_targets(
    tok: Any, prompts: Sequence[str], targets: Sequence[str], names: Sequence[str] | None = None
) -> TokenBatch:
    """Tokenise prompt and target as one text, as a model would read it, and label the target.

    A space is put before a target that has none. The target begins where the tokens leave those
    of the prompt alone, so tokenizers that merge across the border are served too.
    Raises RequestError for a target without tokens; it calls the text by its name.
    """
    targets = [target if target.startswith(" ") else " " + target for target in targets]
    wholes = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
    encoded = tok([*prompts, *wholes])["input_ids"]
    ids, labels = [], []
    for i, (alone, whole) in enumerate(
        zip(encoded[: len(wholes)], encoded[len(wholes) :], strict=True)
    ):
        start = next(
            (t for t, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone)
        )
        # The first token has nothing before it that could predict it.
        start = max(start, 1)
        if start >= len(whole):
            name = names[i] if names else f"Request {i}"
            raise RequestError(
                f"{name}: the target {targets[i].strip()!r} has no tokens in this tokenizer; "
                "give one with visible text."
            )
        ids.append(whole)
        labels.append([IGNORE] * (start - 1) + whole[start:] + [IGNORE])
    return padded(ids, labels)


def subject_positions(tok: Any, requests: Sequence[Mapping[str, Any]]) -> Tensor:
    """[n], the last token of each request's subject in its prompt, where its edit is written.

    The subject's last occurrence counts. Requests without one get the name that the prompt seems
    to be about. Raises RequestError for a subject that is not in the prompt.
    """
    beginnings = []
    for i, request in enumerate(requests):
        prompt, subject = request["prompt"], subject_of(request)
        if not isinstance(subject, str) or subject not in prompt:
            raise RequestError(
                f"Request {i}: the subject {subject!r} is not in the prompt {prompt!r}; give the "
                "words of the prompt that name what the fact is about, or no subject."
            )
        beginnings.append(prompt[: prompt.rindex(subject) + len(subject)])
    return torch.tensor([len(ids) - 1 for ids in tok(beginnings)["input_ids"]])


def prompt_numbers(batch: TokenBatch) -> Tensor:
    """[n], a number of 64 bits for each prompt: the same where the tokens up to the target are."""

    def number(tokens: Tensor) -> int:
        digest = hashlib.blake2b(tokens.cpu().numpy().tobytes(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

    rows = zip(batch.input_ids, batch.targets.int().argmax(1), strict=True)
    return torch.tensor([number(ids[: t + 1]) for ids, t in rows])


def encode_passages(
    tok: Any, passages: Sequence[str], max_tokens: int, fraction: float = 0.9
) -> TokenBatch:
    """The first `max_tokens` of each passage, its last `fraction` of tokens to be predicted."""
    ids, labels = [], []
    for passage in passages:
        tokens = tok(passage)["input_ids"][:max_tokens]
        following = tokens[1:]
        skip = len(following) - int(len(following) * fraction)
        ids.append(tokens)
        labels.append([IGNORE] * skip + following[skip:] + [IGNORE])
    return padded(ids, labels)


def context_length(model: Any) -> int | None:
    """Longest text in tokens that the model's positions reach, if its configuration says so."""
    return getattr(model.config, "max_position_embeddings", None)


def in_context(request: Mapping[str, Any], context: str) -> dict[str, Any]:
    """The request with its prompt after a text, and with a subject: none is guessed in the text."""
    return {**request, "prompt": f"{context} {request['prompt']}", "subject": subject_of(request)}


def encode_requests(
    tok: Any, requests: Iterable[Mapping[str, Any]], model: Any, at_subject: bool = False
) -> TokenBatch:
    """Check and tokenise edit requests: nothing is changed when one of them is unusable.

    at_subject: the batch says where the subjects end, as the place that edits are written at.
    """
    requests = check_requests(requests)
    batch = encode_targets(
        tok, [r["prompt"] for r in requests], [r["target_new"] for r in requests]
    )
    if at_subject:
        batch = replace(batch, at=subject_positions(tok, requests))
    limit = context_length(model)
    lengths = batch.attention_mask.sum(1).tolist()
    for i, length in enumerate(lengths):
        if limit is not None and length > limit:
            raise RequestError(
                f"Request {i}: prompt and target take {length} tokens, but the model's context "
                f"holds {limit}; shorten the prompt."
            )
    return batch
