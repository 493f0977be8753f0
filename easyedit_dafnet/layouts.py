"""The layouts in which data sets of edits are published, and how their records are read.

Every reader goes through here: what `bench` asks, what `edit` edits and what `train` trains on.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, TypeVar

from .edit_records import RELATION_SPECIFICITY, Probe
from .record_values import (
    RequestError,
    filled,
    name_of,
    needed_text,
    not_given,
    refuse,
    text_of,
    texts_of,
)

logger = logging.getLogger(__name__)

Json = Mapping[str, Any]
Kinds = dict[str, tuple[Probe, ...]]
Fields = dict[str, Any]
"""What a record becomes: EditRecord's fields but for the id."""

NEIGHBORHOOD, ONE_HOP, MULTI_HOP = "neighborhood", "one_hop", "multi_hop"
"""Kinds of probes in layouts that do not name them; the first two are EasyEdit's names."""


class LeftOut(RequestError):
    """A record that the data set is known to hold but nobody can edit.

    Attributes:
        what: what such records are, to be counted.
    """

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(reason)
        self.what = what


@dataclass
class Notes:
    """What is to be said once of all records.

    left_out: what could not be used, counted. several: whether the record gives more answers than
    the one that is edited.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    several: bool = False


# --- Values of records ---


def _text(record: Json, *keys: str) -> str:
    """The first of the keys that is there, without white space around it; it must be given."""
    key = next((key for key in keys if key in record), keys[0])
    return needed_text(record.get(key), key).strip()


def _optional(record: Json, *keys: str) -> str:
    """The first of the keys that is there, without white space around it, or ""."""
    key = next((key for key in keys if key in record), keys[0])
    return (text_of(record.get(key), key) or "").strip()


def _first(value: Any, key: str) -> str:
    return next(iter(texts_of(value, key)), "")


def _target(record: Json, notes: Notes, *keys: str, known_to_lack: bool = False) -> str:
    """The first of the acceptable answers, which may stand in lists, or as {"str": answer}.

    known_to_lack: whether the data set is known to hold records without one.
    """
    key = next((key for key in keys if key in record), keys[0])
    value = record.get(key)
    if isinstance(value, Mapping) and "str" in value:
        value = value["str"]
    answers = texts_of(value, key)
    if not answers:
        reason = not_given(value, key)
        raise LeftOut("records without a target", str(reason)) if known_to_lack else reason
    notes.several = notes.several or len(answers) > 1
    return answers[0]


def _dict(record: Json, key: str) -> Json:
    value = record.get(key)
    if not isinstance(value, Mapping):
        given = "is missing" if value is None else f"is a {type(value).__name__}"
        raise RequestError(f"{key!r} {given}; it must be a dict.")
    return value


def _dicts(record: Json, key: str) -> list[Json]:
    value = record.get(key) or []
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise RequestError(f"{key!r} must be a list of dicts.")
    return value


def _probe(
    prompt: Any, answers: Any, notes: Notes, conditions: tuple[Probe, ...] = ()
) -> list[Probe]:
    """One, or none where the question or every answer is empty, as some are in published files."""
    asked, right = _first(prompt, "prompt"), texts_of(answers, "ground_truth")
    if asked and right:
        return [Probe(asked, right, conditions)]
    notes.left_out["probes without a question or an answer"] += 1
    return []


def _asked(entry: Json, name: str) -> list[tuple[Any, Any]]:
    """Prompts with their answers."""
    prompts, answers = entry.get("prompt"), entry.get("ground_truth")
    if not isinstance(prompts, list) or len(prompts) < 2:
        return [(prompts, answers)]
    if not isinstance(answers, list) or len(answers) != len(prompts):
        given = len(answers) if isinstance(answers, list) else 1
        raise RequestError(
            f"{name!r} has {len(prompts)} prompts and {given} ground truths; give one for each."
        )
    return list(zip(prompts, answers, strict=True))


def _kinds(record: Json, key: str, notes: Notes) -> Kinds:
    """From {kind: [{"prompt", "ground_truth"}]}, or EasyEdit's {kind: {"prompt": [...],
    "ground_truth": [...]}} with an answer for each prompt."""
    by_kind = record.get(key) or {}
    if not isinstance(by_kind, Mapping):
        raise RequestError(f"{key!r} must be a dict of {{kind: [{{prompt, ground_truth}}]}}.")
    kinds = {
        kind: tuple(
            probe
            for entry in _dicts(by_kind, kind)
            for prompt, answers in _asked(entry, f"{key} {kind}")
            for probe in _probe(prompt, answers, notes)
        )
        for kind in by_kind
    }
    return {kind: probes for kind, probes in kinds.items() if probes}


# --- One level of keys ---

PROMPT, TARGET, SUBJECT = ("prompt", "text"), ("target_new", "labels"), ("subject", "concept")
"""The keys of a record's own edit; the second ones are those of KnowEdit's biographies."""


def _prompt(request: dict[str, Any], subject: str) -> str | list[Json]:
    """The prompt, its white space kept, or the messages of a chat; "messages" becomes "prompt"."""
    messages = request.pop("messages", None)
    key = next((key for key in PROMPT if key in request), PROMPT[0])
    prompt = request.get(key)
    if messages is not None:
        if prompt is not None:
            raise RequestError(f"{key!r} and 'messages' are both given; give one of them.")
        key, prompt = "messages", messages
    if key == "messages" or (isinstance(prompt, list) and _is_of_dicts(prompt)):
        return _messages(prompt, key, subject)
    if isinstance(prompt, (list, tuple)):
        raise RequestError(
            f"{key!r} is a list; it must be a text, or messages with 'role' and 'content'."
        )
    return filled(needed_text(prompt, key), subject, key)


def _is_of_dicts(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(one, Mapping) for one in value)


def _messages(messages: Any, key: str, subject: str) -> list[Json]:
    """A chat that the user speaks last in, as it is but for a template in the last message."""
    if not isinstance(messages, list) or not _is_of_dicts(messages):
        raise RequestError(f"{key!r} must be a list of messages with 'role' and 'content'.")
    for i, message in enumerate(messages):
        for part in ("role", "content"):
            name = f"{part} of message {i} of {key}"
            if not isinstance(message.get(part), str):
                raise RequestError(f"{name!r} must be a text.")
            text_of(message[part], name)
    last = messages[-1]
    if last["role"] != "user":
        raise RequestError(
            f"The last of the {key} is of the role {last['role']!r}; it must be the user's, and "
            "what the model is to answer is the target_new."
        )
    name = f"content of message {len(messages) - 1} of {key}"
    content = filled(needed_text(last["content"], name), subject, name)
    if content == last["content"]:
        return messages
    return [*messages[:-1], {**last, "content": content}]


@dataclass(frozen=True)
class Flat:
    """One level of keys: EasyEdit's CounterFact files, KnowEdit, DAFSet and files of one's own.

    lacks_targets: whether records without a target are known in such files.

    KnowEdit nests answers as lists of targets of lists of aliases; each of them counts as right.
    DAFSet's robust.json has `prefix`, unrelated texts to put before rephrase and locality prompt:
    here each of them is, cut to 30 words and ended with a stop. `opposite`, a question whose answer
    the edit must not take along, is locality of a kind of its own.
    """

    lacks_targets: bool = False

    def request(self, record: Json, notes: Notes) -> dict[str, Any]:
        """The record as a request, its other keys kept.

        Raises RequestError where something that must be there is missing or no text.
        """
        for keys in ((*PROMPT, "messages"), TARGET):
            if not any(key in record for key in keys):
                given = ", ".join(map(str, record)) or "none"
                raise RequestError(f"{keys[0]!r} is missing; the record's keys are: {given}.")
        request = dict(record)
        subject = _optional(record, *SUBJECT)
        if subject:
            request["subject"] = subject
        else:
            request.pop("subject", None)
        request["prompt"] = _prompt(request, subject)
        request["target_new"] = _target(record, notes, *TARGET, known_to_lack=self.lacks_targets)
        for key in ("rephrase_prompt", "locality_prompt", "locality_ground_truth"):
            # Lists of them are a host's own affair.
            if key not in record or isinstance(record[key], (list, tuple, Mapping)):
                continue
            if text := text_of(record[key], key):
                is_prompt = key != "locality_ground_truth"
                request[key] = filled(text, subject, key) if is_prompt else text
            elif not isinstance(record[key], (str, type(None))):  # NaN
                del request[key]
        return request

    def __call__(self, record: Json, notes: Notes) -> list[Fields]:
        request = self.request(record, notes)
        if not isinstance(request["prompt"], str):
            raise RequestError("'prompt' is a chat; the benchmark asks texts only.")
        return [
            {
                "prompt": request["prompt"].strip(),
                "target_new": request["target_new"],
                "subject": request.get("subject", ""),
                "ground_truth": _first(record.get("ground_truth"), "ground_truth"),
                **flat_probes(request, notes),
            }
        ]


def flat_probes(request: Json, notes: Notes) -> Fields:
    """Rephrases, locality and portability of a record of one level, as EditRecord has them."""
    prefixes = ["", *map(as_prefix, texts_of(request.get("prefix"), "prefix"))]
    rephrases = [
        text
        for key in ("rephrase_prompt", "rephrase", "rephrase_prompts")
        for text in texts_of(request.get(key), key)
    ]
    locality = _kinds(request, "locality", notes)
    if _optional(request, "locality_prompt"):
        question, answer = (_text(request, f"locality_{k}") for k in ("prompt", "ground_truth"))
        probes = [Probe(prefix + question, (answer,)) for prefix in prefixes]
        locality[NEIGHBORHOOD] = (*locality.get(NEIGHBORHOOD, ()), *probes)
    if request.get("opposite"):
        opposite = _dict(request, "opposite")
        probe = _probe(opposite.get("prompt"), opposite.get("ground_truth"), notes)
        locality["opposite"] = tuple(probe)
    return {
        "rephrases": tuple(p + r for p in prefixes for r in dict.fromkeys(rephrases)),
        "locality": locality,
        "portability": _kinds(request, "portability", notes),
    }


def as_prefix(text: str) -> str:
    """A text of DAFSet to put before a question: its first 30 words, ended with a stop."""
    return " ".join(text.split()[:30]).removesuffix(".") + ". "


# --- Several levels ---


def _zsre(record: Json, notes: Notes) -> list[Fields]:
    """MEND's evaluation layout. "?" ends the questions of `loc`, as where ROME and MEMIT ask them.

    `alt` is the target (an empty one is skipped, as in EasyEdit), `answers` the truth. EasyEdit's
    files add `portability`.
    """
    target = _target(record, notes, "alt", known_to_lack=True)
    hop = record.get("portability") or {}
    if not isinstance(hop, Mapping):
        raise RequestError("'portability' must be a dict.")
    hops = _probe(hop.get("New Question"), hop.get("New Answer"), notes) if hop else []
    question = _optional(record, "loc")
    question = question and question.removesuffix("?") + "?"
    near = _probe(question, record.get("loc_ans"), notes) if question else []
    return [
        {
            "prompt": _text(record, "src"),
            "target_new": target,
            "subject": _optional(record, "subject"),
            "ground_truth": _first(record.get("answers"), "answers"),
            "rephrases": texts_of(record.get("rephrase"), "rephrase"),
            "locality": {NEIGHBORHOOD: tuple(near)} if near else {},
            "portability": {ONE_HOP: tuple(hops)} if hops else {},
        }
    ]


def _rewrites(record: Json, notes: Notes) -> list[Fields]:
    """ROME's nested CounterFact, with one rewrite, and MQuAKE, with a list of them.

    The answer of ROME's neighbours is the edit's old one. `attribute_prompts` and
    `generation_prompts` belong to measures that are not taken here.
    A rewrite's `question` in MQuAKE is its prompt in other words. `questions` follow from all
    rewrites of a record together, so they are asked where it has one only.
    """
    rewrites = _dicts(record, "requested_rewrite")
    if not rewrites:
        raise RequestError("'requested_rewrite' is empty; it must be a dict or a list of dicts.")
    edits: list[Fields] = []
    for rewrite in rewrites:
        true = rewrite.get("target_true")
        truth = true.get("str") if isinstance(true, Mapping) else true
        edits.append(
            {
                "prompt": _text(rewrite, "prompt"),
                "target_new": _target(rewrite, notes, "target_new"),
                "subject": _optional(rewrite, "subject"),
                "ground_truth": _first(truth, "target_true"),
                "rephrases": texts_of(rewrite.get("question"), "question"),
            }
        )
    hops = texts_of(record.get("questions"), "questions")
    answers = [record.get("new_answer"), record.get("new_answer_alias")]
    if len(edits) > 1:
        if hops:
            notes.left_out["questions that follow from several edits together"] += len(hops)
        return edits
    (edit,) = edits
    edit["rephrases"] += texts_of(record.get("paraphrase_prompts"), "paraphrase_prompts")
    if probes := tuple(probe for hop in hops for probe in _probe(hop, answers, notes)):
        edit["portability"] = {MULTI_HOP: probes}
    if neighbours := texts_of(record.get("neighborhood_prompts"), "neighborhood_prompts"):
        if not edit["ground_truth"]:
            raise RequestError("'target_true' is missing, the answer to the neighborhood_prompts.")
        truth = edit["ground_truth"]
        edit["locality"] = {NEIGHBORHOOD: tuple(Probe(n, (truth,)) for n in neighbours)}
    return edits


FORGETFULNESS = "Forgetfulness"
RIPPLE_LOCALITY = (RELATION_SPECIFICITY, FORGETFULNESS)
RIPPLE_PORTABILITY = (
    "Logical_Generalization",
    "Compositionality_I",
    "Compositionality_II",
    "Subject_Aliasing",
)
_RIPPLE_SPELLINGS = {RELATION_SPECIFICITY: (RELATION_SPECIFICITY, "Relation_Specifity")}


class _RippleEdits:
    """The authors' layout of RippleEdits.

    An edit is a sentence such as "The harbour of X is called Y.", with Wikidata ids instead of the
    names X and Y, which the authors look up. Here the file itself tells where they begin and end:
    - Y is a name that a query in the file gives to the target's id;
    - words at both ends that all questions of a relation share are its wording, and what is left
      between them is X. Wordings begin and end, where they meet X, in a word in lower case.
    An edit that neither tells apart, or without a name Y, is left out. Where only X cannot be told,
    the subject stays empty.

    Each query is a probe, and any of its targets counts as right. The authors want all of a query's
    targets, in a longer text, and one or all of a test's queries (`test_condition`).
    Conditions are queries to be answered by the unedited model; a test with one that cannot be
    asked is left out.
    """

    def __init__(self, records: Sequence[Json]) -> None:
        self.names: dict[str, str] = {}
        questions: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for record in records:
            # What is wrong with a record is said when it is converted.
            with contextlib.suppress(RequestError):
                for query in _ripple_queries(record):
                    self._learn(query, questions)
        for record in records:
            with contextlib.suppress(RequestError):
                edit = _dict(record, "edit")
                if question := self._without_target(edit):
                    questions[_text(edit, "relation")].add(_words(question))
        self.wordings = {relation: _wording(asked) for relation, asked in questions.items()}

    def _learn(self, query: Json, questions: dict[str, set[tuple[str, ...]]]) -> None:
        for target, answer in zip(_ripple_targets(query), _dicts(query, "answers"), strict=False):
            if isinstance(target, str) and (name := _words(answer.get("value"))):
                self.names[target] = " ".join(name)
        # A query with a phrase of its own is not in the relation's wording.
        if query.get("query_type") == "regular" and query.get("phrase") is None:
            questions[_text(query, "relation")].add(_words(_text(query, "prompt")))

    def _without_target(self, edit: Json) -> str:
        """The question of the edit's sentence, or "" where the target's name is not known."""
        name = self.names.get(str(edit.get("target_id")))
        sentence = _sentence(edit.get("prompt"))
        return (
            sentence.removesuffix(name).rstrip() if name and sentence.endswith(" " + name) else ""
        )

    def split(self, edit: Json) -> tuple[str, str, str]:
        """Subject, prompt and target of an edit."""
        sentence = _sentence(_text(edit, "prompt"))
        before, after = self.wordings.get(_text(edit, "relation"), ((), ()))
        words = _words(sentence)
        if question := self._without_target(edit):
            end = len(_words(question))
        else:
            starts = range(len(before) + 1, len(words) - len(after))
            places = [i for i in starts if after and words[i : i + len(after)] == after]
            if len(places) != 1 or words[: len(before)] != before:
                raise LeftOut(
                    "edits whose subject and target cannot be told apart",
                    f"the subject and the target of {edit['prompt']!r} cannot be told apart.",
                )
            end = places[0] + len(after)
        asked = words[:end]
        subject = asked[len(before) : len(asked) - len(after)]
        if before + subject + after != asked:
            subject = ()
        return " ".join(subject), " ".join(asked), " ".join(words[end:])

    def __call__(self, record: Json, notes: Notes) -> list[Fields]:
        edit = _dict(record, "edit")
        subject, prompt, target = self.split(edit)
        # Only counterfactual edits (random.json, popular.json) have one; an earlier name follows.
        key = next((k for k in ("original_fact", "previous_fact") if edit.get(k)), None)
        previous = _dict(edit, key) if key else {}
        truth = _sentence(previous.get("prompt"))
        known = truth.startswith(prompt + " ")
        return [
            {
                "prompt": prompt,
                "target_new": target,
                "subject": subject,
                "ground_truth": truth[len(prompt) :].strip() if known else "",
                "locality": _ripple_probes(record, RIPPLE_LOCALITY, notes),
                "portability": _ripple_probes(record, RIPPLE_PORTABILITY, notes),
            }
        ]


def _words(text: Any) -> tuple[str, ...]:
    return tuple(text.split()) if isinstance(text, str) else ()


def _sentence(text: Any) -> str:
    """In single spaces and without its stop."""
    return " ".join(_words(text)).removesuffix(".").rstrip()


def _wording(questions: Iterable[tuple[str, ...]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What all questions begin and end with; nothing where a single one cannot tell."""
    before = _shared(questions)
    after = _shared(question[len(before) :][::-1] for question in questions)[::-1]
    return before, after


def _shared(questions: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The words that all begin with, up to the last in lower case: names may have begun alike."""
    places = takewhile(lambda words: len(set(words)) == 1, zip(*questions, strict=False))
    words = [place[0] for place in places]
    while words and not words[-1][0].islower():
        words.pop()
    return tuple(words)


def _ripple_tests(record: Json, kind: str) -> list[Json]:
    spellings = _RIPPLE_SPELLINGS.get(kind, (kind,))
    return _dicts(record, next((s for s in spellings if s in record), kind))


def _ripple_queries(record: Json) -> Iterator[Json]:
    """All queries of the record, those of conditions as well."""
    for kind in (*RIPPLE_LOCALITY, *RIPPLE_PORTABILITY):
        for test in _ripple_tests(record, kind):
            yield from _dicts(test, "test_queries")
            yield from _dicts(test, "condition_queries")


def _ripple_targets(query: Json) -> list[Any]:
    """Wikidata ids (or values) of the answers, in the same order."""
    key = "second_hop_target_ids" if query.get("query_type") == "two_hop" else "target_ids"
    value = query.get(key)
    return value if isinstance(value, list) else [value]


def _ripple_names(query: Json) -> tuple[str, ...]:
    """Of all answers. No single letters but digits, like the authors: any text has them."""
    names = texts_of(
        [[a.get("value"), a.get("aliases")] for a in _dicts(query, "answers")], "answers"
    )
    return tuple(name for name in names if len(name) > 1 or name.isdigit())


def _ripple_probes(record: Json, kinds: Iterable[str], notes: Notes) -> Kinds:
    found = {}
    for kind in kinds:
        probes: list[Probe] = []
        for test in _ripple_tests(record, kind):
            presupposed = _dicts(test, "condition_queries")
            conditions = tuple(
                probe
                for query in presupposed
                for probe in _probe(query.get("prompt"), _ripple_names(query), Notes())
            )
            if len(conditions) < len(presupposed):
                notes.left_out["tests with a condition without a question or an answer"] += 1
                continue
            for query in _dicts(test, "test_queries"):
                probes += _probe(query.get("prompt"), _ripple_names(query), notes, conditions)
        if probes:
            found[kind] = tuple(probes)
    return found


# --- All of them ---

Convert = Callable[[Json, Notes], "list[Fields]"]


@dataclass(frozen=True)
class Layout:
    """How a data set's records are written.

    keys: what its records have; "|" separates alternatives. A record is in the first layout whose
    keys it has. converter: from all of a file's records in this layout to the function that turns
    one of them into the fields of an EditRecord, or of several. flat: the same of a layout whose
    records are requests as they stand. needed: what the benchmark asks of each record besides.
    """

    name: str
    keys: tuple[str, ...]
    converter: Callable[[Sequence[Json]], Convert]
    flat: Flat | None = None
    needed: tuple[str, ...] = ()

    def fits(self, record: Any) -> bool:
        return isinstance(record, Mapping) and all(
            any(key in record for key in keys.split("|")) for keys in self.keys
        )

    def error(self, reason: RequestError) -> RequestError:
        """The reason with the layout's name."""
        return RequestError(f"{str(reason).removesuffix('.')} (layout {self.name}).")

    @classmethod
    def of_flat(
        cls, name: str, keys: tuple[str, ...], flat: Flat, needed: tuple[str, ...] = ()
    ) -> Layout:
        return cls(name, keys, lambda _: flat, flat, needed)


_COUNTERFACT = ("rephrase_prompt", "locality_prompt", "locality_ground_truth")
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("zsre", ("src", "alt"), lambda _: _zsre, needed=("rephrase", "loc", "loc_ans")),
        Layout("mquake", ("requested_rewrite", "questions"), lambda _: _rewrites),
        Layout("rome_counterfact", ("requested_rewrite",), lambda _: _rewrites),
        Layout("ripple_edits", ("example_type", "edit"), _RippleEdits),
        Layout.of_flat(
            "dafset", ("prompt", "target_new", *_COUNTERFACT, "prefix"), Flat(), _COUNTERFACT
        ),
        Layout.of_flat(
            "knowedit",
            ("prompt|text", "target_new|labels", "locality|portability"),
            Flat(lacks_targets=True),
        ),
        Layout.of_flat(
            "counterfact", ("prompt", "target_new", "subject", *_COUNTERFACT), Flat(), _COUNTERFACT
        ),
        Layout.of_flat("own", ("prompt|messages", "target_new"), Flat()),
    )
}


def layout_of(record: Any, first: Layout | None = None) -> Layout | None:
    """The layout that a record is in, or None.

    Args:
        record: anything that a file holds.
        first: the layout of the file's first record. The record is taken to be in it, too, unless
            it has the keys of one that keeps its edit elsewhere.
    """
    own = next((layout for layout in LAYOUTS.values() if layout.fits(record)), None)
    if first and (own is None or first.fits(record) or (first.flat and own.flat)):
        return first
    return own


def converters(records: Sequence[Any], layouts: Sequence[Layout | None]) -> dict[Layout, Convert]:
    """What turns a record into fields of EditRecords, without templates, by its layout.

    Args:
        records: all of them: some layouts are understood from several records only.
        layouts: of each record.
    """
    groups: dict[Layout, list[Json]] = defaultdict(list)
    for record, layout in zip(records, layouts, strict=True):
        if layout:
            groups[layout].append(record)
    return {layout: _converter(layout, group) for layout, group in groups.items()}


def _converter(layout: Layout, records: Sequence[Json]) -> Convert:
    convert = layout.converter(records)

    def named(record: Json, notes: Notes) -> list[Fields]:
        try:
            return [without_templates(fields) for fields in convert(record, notes)]
        except LeftOut:
            raise
        except RequestError as error:
            raise layout.error(error) from None

    return named


def without_templates(fields: Fields) -> Fields:
    """An EditRecord's fields with the subject in place of "{}" in all its prompts."""
    subject = fields["subject"]

    def fill(probe: Probe, key: str) -> Probe:
        prompt = filled(probe.prompt, subject, key)
        conditions = tuple(fill(condition, key) for condition in probe.conditions)
        return replace(probe, prompt=prompt, conditions=conditions)

    kinds: dict[str, Kinds] = {
        key: {
            kind: tuple(fill(probe, f"{key} {kind}") for probe in probes)
            for kind, probes in fields.get(key, {}).items()
        }
        for key in ("locality", "portability")
    }
    rephrases = tuple(filled(text, subject, "rephrase") for text in fields.get("rephrases", ()))
    prompt = filled(fields["prompt"], subject, "prompt")
    return {**fields, "prompt": prompt, "rephrases": rephrases, **kinds}


T = TypeVar("T")


def read_each(
    records: Sequence[Any],
    read: Callable[[int, Notes], Sequence[T]],
    leave_out: bool = False,
    where: str = "",
) -> list[tuple[int, T]]:
    """What is read from each record, after its place; what is to be said of them is said once.

    Args:
        records: all of them.
        read: from a record's place to what it becomes.
        leave_out: whether records that their data set is known to hold, but nobody can edit, are
            left out with a warning that counts them; else they are refused like others.
        where: what the warnings begin with, such as the file's name.

    Raises:
        RequestError: about all records that cannot be used, or where none is left.
    """
    found: list[tuple[int, T]] = []
    problems: dict[int, str] = {}
    left_out: Counter[str] = Counter()
    several: list[str] = []
    for i, record in enumerate(records):
        notes = Notes()
        try:
            if not isinstance(record, Mapping):
                raise RequestError(
                    f"it is of type {type(record).__name__}; it must be a dict with 'prompt' and "
                    "'target_new'."
                )
            found += [(i, one) for one in read(i, notes)]
        except LeftOut as reason:
            if leave_out:
                left_out[reason.what] += 1
            else:
                problems[i] = str(reason)
        except RequestError as error:
            problems[i] = str(error)
        except RecursionError:
            problems[i] = "it is nested too deeply."
        left_out += notes.left_out
        if notes.several:
            several.append(name_of(record, i))
    refuse(records, problems)
    where = where and f"{where}: "
    counts = ", ".join(f"{what} ({count})" for what, count in left_out.items())
    if not found:
        raise RequestError(f"{where}no record can be edited; left out: {counts}.")
    if counts:
        logger.warning("%sleft out: %s.", where, counts)
    if several:
        logger.warning(
            "%s%d of %d records give several answers as target, such as %s; the first is taken.",
            where, len(several), len(records), several[0],
        )  # fmt: skip
    return found
