"""Edit requests and records to train on: what they must contain."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class RequestError(ValueError):
    """An edit request that cannot be used; the message says which one and why.

    problems: the reasons by the place of the requests, as far as they are known.
    """

    def __init__(self, message: str, problems: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.problems = dict(problems or {})


def refuse(problems: Mapping[int, str], names: Sequence[str] | None = None) -> None:
    """Raise RequestError where there are problems, by the number of their request."""
    for i, problem in problems.items():
        raise RequestError(f"{names[i] if names else f'Request {i}'}: {problem}.", problems)


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
                problem = f"{key!r} {given}; it must be a text that is not empty."
                raise RequestError(f"Request {i}: {problem}", {i: problem})
    return requests


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
