"""Edit requests and data records: what they must contain, and how they become tokens."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORE = -100  # label of a position that no loss reads, as everywhere in transformers


class RequestError(ValueError):
    """An edit request that cannot be used; the message says which one and why."""


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


# Words that may stand inside a name, and those that are none, capitalised or not.
_INSIDE = r"(?:of|the|de|la|du|van|von|der|and|for|in|on|at|to|y|e|&)"
_NAME = re.compile(rf"[A-Z0-9][\w'’.:!-]*(?:,? {_INSIDE}(?= )| ?[A-Z0-9&][\w'’.:!-]*| [IVX]+)*")
_VERB = "is|are|was|were|be|been|has|have|had|do|does|did|can|could|will|would|may"
_SMALL = (
    f"{_VERB}|what|who|whom|whose|which|where|when|why|how|the|a|an|in|on|at|by|of|to|from|for|with|"
    "as|and|or|during|after|before|if|it|its|he|his|she|her|they|their|we|our|you|your|i|my|this|"
    "that|these|those|there|not|called|named|known|located|born"
)


def _is(kind: str, word: str) -> bool:
    return re.fullmatch(kind, word.strip(",;"), re.IGNORECASE) is not None


def guess_subject(prompt: str) -> str:
    """What a prompt is about, where nobody says so: its longest name, a first word only if alone.

    A name is a run of capitalised words, with small ones such as "of" between them. Without one it
    is the last run of words before the verb that are not small, or all of the prompt.
    """
    names = []
    for match in _NAME.finditer(prompt):
        words = match[0].split(" ")
        while words and _is(_SMALL, words[0]):
            words = words[1:]
        if name := " ".join(words).rstrip(",.:!?"):
            names.append((match.start() > 0, re.sub(r"['’]s$", "", name)))
    inside = [name for is_inside, name in names if is_inside or " " in name]
    if found := inside or [name for _, name in names]:
        return max(found, key=len)
    words = prompt.rstrip(" .:?!").split(" ")
    small = [_is(_SMALL, word) for word in words]
    for end in reversed([i for i, word in enumerate(words) if _is(_VERB, word)]):
        if not all(small[:end]):
            words, small = words[:end], small[:end]
            break
    while small and small[-1]:
        words, small = words[:-1], small[:-1]
    start = max((i + 1 for i, is_small in enumerate(small) if is_small), default=0)
    return " ".join(words[start:]) or prompt


def subject_of(request: Mapping[str, Any]) -> Any:
    """What the request says, without space around it; a guess where it says nothing."""
    subject = request.get("subject")
    subject = subject.strip() if isinstance(subject, str) else subject
    return guess_subject(request["prompt"]) if subject in (None, "") else subject


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


def check_requests(requests: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The requests as a list, once each is known to have a prompt and a target_new with text."""
    if isinstance(requests, Mapping):
        raise RequestError("The requests must be a list; wrap a single request in [ ].")
    requests = list(requests)
    if not requests:
        raise RequestError("There are no requests to apply; give at least one.")
    for i, request in enumerate(requests):
        if not isinstance(request, Mapping):
            raise RequestError(
                f"Request {i} is a {type(request).__name__}; "
                "it must be a dict with 'prompt' and 'target_new'."
            )
        for key in ("prompt", "target_new"):
            value = request.get(key)
            if not isinstance(value, str) or not value.strip():
                given = "is missing" if value is None else f"is {value!r}"
                raise RequestError(
                    f"Request {i}: {key!r} {given}; it must be a text that is not empty."
                )
    return requests


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


def load_records(path: str | Path) -> list[dict[str, Any]]:
    """Records of a .json (a list), .jsonl (one a line) or .csv (a header line) file, of any keys.

    Raises RequestError naming the file when it is missing, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"There is no file {str(path)!r}.")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                records: Any = list(csv.DictReader(file))
            elif path.suffix == ".jsonl":
                records = [json.loads(line) for line in file if line.strip()]
            elif path.suffix == ".json":
                records = json.load(file)
            else:
                raise RequestError(f"{path}: the name must end in .json, .jsonl or .csv.")
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise RequestError(f"{path} is damaged or not {path.suffix[1:]}: {error}.") from None
    if not isinstance(records, list):
        raise RequestError(f"{path} must hold a list of records, not a {type(records).__name__}.")
    for i, record in enumerate(records):
        if isinstance(record, dict) and None in record:
            raise RequestError(
                f"{path}: record {i} has more cells than the header; put quotes around texts with "
                "commas."
            )
    return records


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Records of a file, each with a prompt and a target_new.

    Raises RequestError naming the file and the first unusable record.
    """
    records = load_records(path)
    try:
        check_requests(records)
    except RequestError as error:
        keys = ", ".join(records[0]) if records and isinstance(records[0], dict) else "none"
        raise RequestError(f"{path}: {error} (The first record's keys: {keys}.)") from None
    return records


def with_drawn_texts(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """To train on: a record of DAFSet with one of its texts of a kind, always the same one.

    DAFSet's records have a list `prefix` of texts to put before rephrase and locality prompt, and
    may have `rephrase_prompts`, further wordings, and `opposite`, another question that the edit
    must leave alone. Other records come back as they are.
    """
    if not isinstance(record.get("prefix"), list):
        return record
    draw = random.Random(record["prompt"]).choice
    prefixes = ["", *map(as_prefix, record["prefix"])]
    drawn = {name: value for name, value in record.items() if name != "prefix"}
    rephrases = record.get("rephrase_prompts") or [record.get("rephrase_prompt")]
    if rephrase := draw(rephrases):
        drawn["rephrase_prompt"] = draw(prefixes) + rephrase
    kept = [(record.get("locality_prompt"), record.get("locality_ground_truth"))]
    if opposite := record.get("opposite"):
        kept.append((opposite["prompt"], opposite["ground_truth"]))
    prompt, answer = draw(kept)
    if prompt:
        drawn |= {"locality_prompt": draw(prefixes) + prompt, "locality_ground_truth": answer}
    return drawn


def as_prefix(text: str) -> str:
    """A text of DAFSet to put before a question: its first 30 words, ended with a stop."""
    return " ".join(text.split()[:30]).removesuffix(".") + ". "


def hold_out(
    records: Sequence[dict[str, Any]], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records to validate on, 5 % and at most 200, and the others; the same for the same seed."""
    mixed = random.Random(seed).sample(records, len(records))
    count = min(200, max(1, len(mixed) // 20))
    return mixed[:count], mixed[count:]
