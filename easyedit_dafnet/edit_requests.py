"""Edit requests and records to train on: what they must contain."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from .edit_records import EditRecord
from .layouts import (
    LAYOUTS,
    Notes,
    as_prefix,
    converters,
    flat_probes,
    layout_of,
    read_each,
    without_templates,
)
from .record_values import Record, RequestError, name_of, refuse

T = TypeVar("T")

__all__ = [
    "Record",
    "RequestError",
    "check_requests",
    "hold_out",
    "name_of",
    "refuse",
    "training_records",
]


def check_requests(requests: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Edit requests in one form, whichever of the known layouts they are given in.

    Numbers become texts; None, NaN and texts of white space count as not given; of a list of
    acceptable answers the first is taken, with a warning that counts such requests; "{}" in a
    prompt is filled with the subject. A record that has several edits becomes several requests.

    Args:
        requests: dicts, flat (`prompt`, `target_new`, `subject`) or as in `layouts.LAYOUTS`.

    Returns:
        New dicts with `prompt`, a text or the messages of a chat; `target_new` and, where it is
        given, `subject`, without white space around them; other keys as they were.

    Raises:
        RequestError: about all requests that cannot be used, before anything is edited.
    """
    return _flat(_listed(requests), dict)


def training_records(data: Iterable[Mapping[str, Any]], name: str) -> list[Record]:
    """Records to train on in one form, as `check_requests` has it, each with texts drawn from it.

    Records that a data set is known to hold but nobody can edit are left out, with a warning.

    Args:
        data: dicts in any of the known layouts.
        name: what messages call the data, where the records have no names of their own.

    Returns:
        Requests with, where the record has any, one `rephrase_prompt`, one `locality_prompt` with
        its `locality_ground_truth`, and so a `same_subject_prompt`, another question about the
        edit's subject.

    Raises:
        RequestError: about all records that cannot be used.
    """
    records = [
        record
        if isinstance(record, Record) or not isinstance(record, Mapping)
        else Record(record, f"{name}, record {i}")
        for i, record in enumerate(_listed(data))
    ]
    return _flat(records, with_drawn_texts, leave_out=True, where=name)


def _listed(requests: Iterable[Mapping[str, Any]]) -> list[Any]:
    if isinstance(requests, (Mapping, str)) or not isinstance(requests, Iterable):
        raise RequestError(
            f"The requests must be a list, not a {type(requests).__name__}; wrap a single request "
            "in [ ]."
        )
    if not (listed := list(requests)):
        raise RequestError("There are no requests to apply; give at least one.")
    return listed


def _flat(
    records: Sequence[Any],
    finish: Callable[[dict[str, Any]], dict[str, Any]],
    leave_out: bool = False,
    where: str = "",
) -> list[Record]:
    """The requests of records in any layout, each finished in its own way, with their names."""
    layouts = [layout_of(record) for record in records]
    convert = converters(records, layouts)

    def read(i: int, notes: Notes) -> list[Record]:
        record, name = records[i], name_of(records[i], i)
        layout = layouts[i] or LAYOUTS["own"]
        if layout.flat:
            requests = [layout.flat.request(record, notes)]
        else:
            edit_id = str(record.get("case_id", ""))
            fields = convert[layout](record, notes)
            requests = [EditRecord(id=edit_id, **edit).flat() for edit in fields]
            requests = [{k: v for k, v in request.items() if v} for request in requests]
        several = len(requests) > 1
        names = [f"{name}, rewrite {k}" if several else name for k in range(len(requests))]
        return [Record(finish(r), name) for r, name in zip(requests, names, strict=True)]

    return [request for _, request in read_each(records, read, leave_out, where)]


def with_drawn_texts(request: Mapping[str, Any]) -> dict[str, Any]:
    """To train on: a request with one of its texts of a kind, always the same one.

    DAFSet's records have a list `prefix` of texts to put before rephrase and locality prompt, and
    may have `rephrase_prompts`, further wordings, and `opposite`, another question that the edit
    must leave alone. In other records a rephrase and a locality prompt that they have themselves
    stay, and KnowEdit's and EasyEdit's dictionaries serve where there is none. What was drawn from
    is left away, so that a second time changes nothing.

    Raises RequestError for a text that cannot be used.
    """
    seed = str(request["prompt"])  # a chat is a list
    fields = {"prompt": "", "subject": request.get("subject", ""), **flat_probes(request, Notes())}
    fields = {**without_templates(fields), "prompt": seed, "target_new": request["target_new"]}
    prefix = request.get("prefix")
    sources = {"rephrase", "rephrase_prompts", "locality", "opposite"}
    if not isinstance(prefix, list):
        drawn = {key: value for key, value in request.items() if key not in sources}
        found = EditRecord(id="", **fields).flat()
        for keys in (
            ("rephrase_prompt",),
            ("locality_prompt", "locality_ground_truth"),
            ("same_subject_prompt", "same_subject_ground_truth"),
        ):
            if found.get(keys[0]) and not request.get(keys[0]):
                drawn |= {key: found[key] for key in keys}
        return drawn
    drawn = {key: value for key, value in request.items() if key not in {*sources, "prefix"}}
    draw = random.Random(seed).choice
    prefixes = ["", *map(as_prefix, prefix)]
    rephrases = request.get("rephrase_prompts") or [request.get("rephrase_prompt")]
    if rephrase := draw(rephrases):
        drawn["rephrase_prompt"] = draw(prefixes) + rephrase
    kept = [(request.get("locality_prompt"), request.get("locality_ground_truth"))]
    kept += [(p.prompt, p.answers[0]) for p in fields["locality"].get("opposite", ())]
    prompt, answer = draw(kept)
    if prompt:
        drawn |= {"locality_prompt": draw(prefixes) + prompt, "locality_ground_truth": answer}
    return drawn


def hold_out(records: Sequence[T], seed: int) -> tuple[list[T], list[T]]:
    """Records to validate on, 5 % and at most 200, and the others; the same for the same seed."""
    mixed = random.Random(seed).sample(records, len(records))
    count = min(200, max(1, len(mixed) // 20))
    return mixed[:count], mixed[count:]
