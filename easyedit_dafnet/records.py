"""How edit requests and other texts become tokens, and where in them an edit is written."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .edit_requests import Record, check_requests, name_of, refuse
from .prompts import Wording, after_context, chat_form, is_chat, reply_end, with_target
from .subjects import guess_subject, subject_spans

LOG = logging.getLogger(__name__)
AS_GIVEN = Wording()
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


def stacked(batches: Sequence[TokenBatch]) -> TokenBatch:
    """The rows of all batches in one, those of the first batch first."""
    length = max(batch.input_ids.shape[1] for batch in batches)

    def wide(tensor: Tensor, value: int = 0) -> Tensor:
        return F.pad(tensor, (0, length - tensor.shape[1]), value=value)

    at = [batch.at for batch in batches if batch.at is not None]
    return TokenBatch(
        torch.cat([wide(batch.input_ids) for batch in batches]),
        torch.cat([wide(batch.attention_mask) for batch in batches]),
        torch.cat([wide(batch.labels, IGNORE) for batch in batches]),
        torch.cat(at) if at else None,
    )


def first_answers(batch: TokenBatch) -> TokenBatch:
    """The texts up to where the first token of the target is predicted, which alone is asked."""
    asked = batch.targets
    first = (asked.cumsum(1) == 1) & asked
    cut = replace(
        batch,
        attention_mask=batch.attention_mask * (first.cumsum(1) - first.int() == 0),
        labels=batch.labels.masked_fill(~first, IGNORE),
    )
    return cut[:]


def added_tokens(tok: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind every text, such as a begin and an end token."""
    bare, whole = tok("a", add_special_tokens=False)["input_ids"], tok("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : (end := start + len(bare))] == bare:
            return whole[:start], whole[end:]
    return [], []


def token_ids(tok: Any, texts: Sequence[str]) -> list[list[int]]:
    """Each text's tokens as a model reads them that is to go on with the text.

    A token that the tokenizer puts before every text is among them, once, and also where the text
    has it itself, as those in chat form do. One that it puts behind every text is not.
    """
    if not texts:
        return []
    first, _ = added_tokens(tok)
    rows = tok(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [ids if ids[: len(first)] == first else first + ids for ids in rows]


def answer_start(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """The token of prompt and target at which the target begins.

    That is where the tokens leave those of the prompt alone, so that tokenizers that merge across
    the border are served too. At least 1: nothing before a first token could predict it.
    """
    pairs = enumerate(zip(prompt, whole, strict=False))
    return max(next((t for t, (a, b) in pairs if a != b), len(prompt)), 1)


def encode_targets(
    tok: Any,
    prompts: Sequence[str],
    targets: Sequence[str],
    names: Sequence[str] | None = None,
    spaces: Sequence[bool | None] | None = None,
) -> TokenBatch:
    """Tokenise prompt and target as one text, as a model would read it, and label the target.

    Args:
        tok: a tokenizer of transformers.
        prompts: n texts.
        targets: n texts; see `prompts.with_target` for the space before them.
        names: what an error calls the texts.
        spaces: whether a space stands before each target; None: as its prompt asks.

    Raises:
        RequestError: a target has no tokens.
    """
    each = zip(prompts, targets, spaces or [None] * len(prompts), strict=True)
    wholes = token_ids(tok, [with_target(*parts) for parts in each])
    starts = [answer_start(*row) for row in zip(token_ids(tok, prompts), wholes, strict=True)]
    refuse(
        [Record({}, name) for name in names] if names else prompts,
        {
            i: f"the target {targets[i].strip()!r} has no tokens in this tokenizer; give one with "
            "visible text."
            for i, (start, whole) in enumerate(zip(starts, wholes, strict=True))
            if start >= len(whole) or not targets[i].strip()
        },
    )
    labels = [
        [IGNORE] * (start - 1) + whole[start:] + [IGNORE]
        for start, whole in zip(starts, wholes, strict=True)
    ]
    return padded(wholes, labels)


def last_tokens(tok: Any, texts: Sequence[str], ends: Sequence[int]) -> list[int]:
    """Of each text the last token, in `token_ids`, that begins before the character `end`."""
    fast = getattr(tok, "is_fast", False)
    more = {"return_offsets_mapping": True} if fast else {}
    encoded = tok(list(texts), add_special_tokens=False, **more)
    found = []
    for i, (ids, end) in enumerate(zip(token_ids(tok, texts), ends, strict=True)):
        bare = encoded["input_ids"][i]
        if fast:
            spans = enumerate(encoded["offset_mapping"][i])
            place = max((t for t, (start, stop) in spans if start < min(end, stop)), default=0)
        else:
            place = _token_that_shows(tok, bare, texts[i][:end])
        found.append(place + len(ids) - len(bare))  # behind a begin token
    return found


def _token_that_shows(tok: Any, ids: Sequence[int], text: str) -> int:
    """The token with which all of a text is decoded that the tokens begin with.

    For tokenizers that do not say where in a text their tokens lie.
    """

    def shown(text: str) -> int:  # but for what tokenizers put in and leave out: spaces, accents
        parts = unicodedata.normalize("NFD", text)
        return sum(not (c.isspace() or unicodedata.combining(c) or c == "\ufffd") for c in parts)

    wanted = shown(text)
    places = (t for t in range(len(ids)) if shown(tok.decode(ids[: t + 1])) >= wanted)
    return next(places, len(ids) - 1)


def worded(
    tok: Any,
    requests: Iterable[Mapping[str, Any]],
    wording: Wording = AS_GIVEN,
    at_subject: bool = False,
) -> list[Record]:
    """The requests as they are put to the model.

    Args:
        tok: its chat template turns messages into a text, and prompts where the settings say so.
        requests: see `check_requests`.
        wording: the settings.
        at_subject: edits are written where their subjects end, so each gets the `subject` by the
            words of its prompt; it is guessed where none is given.

    Returns:
        The requests, each with a text as its `prompt`; in chat form the target ends as a reply
        does, or the model would go on talking.

    Raises:
        RequestError: which requests cannot be used, and why.
    """
    found: list[Record] = []
    problems: dict[int, str] = {}
    several: list[int] = []
    for i, request in enumerate(check_requests(requests)):
        found.append(Record(request, name_of(request, i)))
        if wording.target_space is not None:
            found[i].setdefault("target_space", wording.target_space)
        try:
            if wording.use_chat_template or not isinstance(request["prompt"], str):
                found[i]["prompt"] = chat_form(tok, request["prompt"])
            if is_chat(found[i]["prompt"]):
                end = reply_end(tok)
                found[i]["target_new"] = request["target_new"].removesuffix(end) + end
            if at_subject:
                spans = subject_spans(found[i], wording.subject == "guess")
                found[i]["subject"] = found[i]["prompt"][slice(*spans[-1])]
                several += [i] if len(spans) > 1 else []
        except ValueError as error:
            problems[i] = str(error)
    refuse(found, problems)
    if several:
        first = found[several[0]]
        LOG.warning(
            "%d of %d requests have their subject in several places of the prompt, such as %r in "
            "%s; the edit is written at the last one.",
            len(several), len(found), first["subject"], first.name,
        )  # fmt: skip
    return found


def subject_positions(tok: Any, requests: Sequence[Mapping[str, Any]]) -> Tensor:
    """[n], the last token of each request's subject in its prompt, where its edit is written.

    The subject's last occurrence as words of its own counts; see `subjects.find_subject`. Requests
    without one get the name that the prompt seems to be about.

    Raises:
        RequestError: a subject is not in its prompt.
    """
    ends: list[int] = []
    problems: dict[int, str] = {}
    for i, request in enumerate(requests):
        try:
            ends.append(subject_spans(request)[-1][1])
        except ValueError as error:
            problems[i] = str(error)
    refuse(requests, problems)
    return torch.tensor(last_tokens(tok, [request["prompt"] for request in requests], ends))


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
    for tokens in token_ids(tok, passages):
        tokens = tokens[:max_tokens]
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
    prompt = request["prompt"]
    subject = str(request.get("subject") or "").strip() or guess_subject(prompt)
    return {**request, "prompt": after_context(prompt, context), "subject": subject}


def encode_requests(
    tok: Any,
    requests: Iterable[Mapping[str, Any]],
    model: Any,
    at_subject: bool = False,
    wording: Wording = AS_GIVEN,
) -> TokenBatch:
    """Check and tokenise edit requests: nothing is changed when one of them is unusable.

    Args:
        tok: the model's tokenizer.
        requests: see `check_requests`.
        model: its configuration says how long texts may be.
        at_subject: the batch says where the subjects end, as the place that edits are written at.
        wording: see `worded`.

    Raises:
        RequestError: which requests cannot be used, and why.
    """
    return encode_worded(tok, worded(tok, requests, wording, at_subject), model, at_subject)


def encode_worded(
    tok: Any, requests: Sequence[Mapping[str, Any]], model: Any, at_subject: bool = False
) -> TokenBatch:
    """Tokenise requests that are put as the model is asked them. Arguments as `encode_requests`."""
    prompts = [request["prompt"] for request in requests]
    batch = encode_targets(
        tok,
        prompts,
        [request["target_new"] for request in requests],
        [name_of(request, i) for i, request in enumerate(requests)],
        spaces=[request.get("target_space") for request in requests],
    )
    limit = context_length(model)
    lengths = batch.attention_mask.sum(1).tolist()
    refuse(
        requests,
        {
            i: f"prompt and target take {length} tokens, but the model's context holds {limit}; "
            "shorten the prompt."
            for i, length in enumerate(lengths)
            if limit is not None and length > limit
        },
    )
    if at_subject:
        ends = [subject_spans(request)[-1][1] for request in requests]
        # A token over the border to the target is one of the target's: the one before it then.
        at = torch.tensor(last_tokens(tok, prompts, ends))
        batch = replace(batch, at=at.minimum(batch.targets.int().argmax(1)))
    return batch
