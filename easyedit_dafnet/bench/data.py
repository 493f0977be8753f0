"""Data sets of edits: one reader for each layout in which they are published.

>>> records = read_edits("counterfact-edit.json")  # the layout is found by the first record's keys
>>> records = data_source("zsre=zsre_mend_eval.json").read()
>>> records = data_source("facts").read()  # the embedded ones, without a file

A data set in a layout of its own is read by a function (path) -> list[EditRecord], made known by
`register_data` or by an entry point of the group ``easyedit_dafnet.data``.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from ..edit_requests import RequestError, as_prefix
from ..facts import load_facts
from ..record_files import load_records
from .records import EditRecord, Probe

logger = logging.getLogger(__name__)

Json = Mapping[str, Any]
Kinds = dict[str, tuple[Probe, ...]]
Fields = dict[str, Any]
"""What a record becomes: EditRecord's fields but for the id."""

NEIGHBORHOOD, ONE_HOP = "neighborhood", "one_hop"
"""EasyEdit's names for the kinds of probes in layouts that do not name them."""


class _LeftOut(Exception):
    """A record that the data set is known to hold but nobody can edit; says what it is."""


# --- Values of records ---


def _text(record: Json, *keys: str) -> str:
    """The first of the keys that is there; a text that is not empty, without spaces around it."""
    key = next((key for key in keys if key in record), keys[0])
    value = record.get(key)
    if isinstance(value, (int, float)):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        given = "is missing" if value is None else f"is {value!r}"
        raise RequestError(f"{key!r} {given}; it must be a text that is not empty.")
    return value.strip()


def _texts(*values: Any) -> tuple[str, ...]:
    """All texts in nested lists, in order, each once; numbers are written out."""

    def flat(value: Any) -> Iterator[str]:
        if isinstance(value, (list, tuple)):
            for one in value:
                yield from flat(one)
        elif isinstance(value, (str, int, float)) and str(value).strip():
            yield str(value).strip()

    return tuple(dict.fromkeys(flat(values)))


def _first(value: Any) -> str:
    return next(iter(_texts(value)), "")


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
    prompt: Any, answers: Any, left_out: Counter[str], conditions: tuple[Probe, ...] = ()
) -> list[Probe]:
    """One, or none where the question or every answer is empty, as some are in published files."""
    asked, right = _first(prompt), _texts(answers)
    if asked and right:
        return [Probe(asked, right, conditions)]
    left_out["probes without a question or an answer"] += 1
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


def _kinds(record: Json, key: str, left_out: Counter[str]) -> Kinds:
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
            for probe in _probe(prompt, answers, left_out)
        )
        for kind in by_kind
    }
    return {kind: probes for kind, probes in kinds.items() if probes}


# --- Layouts ---


class _Flat:
    """One level of keys: EasyEdit's CounterFact files, KnowEdit, DAFSet and files of one's own.

    needed: keys that every record must have besides prompt and target_new. empty_target: whether
    records without a target are known in such files; they are left out.

    KnowEdit nests answers as lists of targets of lists of aliases; each of them counts as right.
    DAFSet's robust.json has `prefix`, unrelated texts to put before rephrase and locality prompt:
    here each of them is, cut to 30 words and ended with a stop. `opposite`, a question whose answer
    the edit must not take along, is locality of a kind of its own.
    """

    def __init__(self, *needed: str, empty_target: bool = False) -> None:
        self.needed, self.empty_target = needed, empty_target

    def __call__(self, record: Json, left_out: Counter[str]) -> Fields:
        if self.empty_target and not _texts(record.get("target_new", record.get("labels"))):
            raise _LeftOut("records without a target")
        for key in self.needed:
            _text(record, key)
        prefixes = ["", *map(as_prefix, _texts(record.get("prefix")))]
        keys = ("rephrase_prompt", "rephrase", "rephrase_prompts")
        rephrases = _texts([record.get(key) for key in keys])
        locality = _kinds(record, "locality", left_out)
        if record.get("locality_prompt"):
            question, answer = (_text(record, f"locality_{k}") for k in ("prompt", "ground_truth"))
            probes = [Probe(prefix + question, (answer,)) for prefix in prefixes]
            locality[NEIGHBORHOOD] = (*locality.get(NEIGHBORHOOD, ()), *probes)
        if isinstance(opposite := record.get("opposite"), Mapping):
            probe = _probe(opposite.get("prompt"), opposite.get("ground_truth"), left_out)
            locality["opposite"] = tuple(probe)
        return {
            "prompt": _text(record, "prompt", "text"),
            "target_new": _text(record, "target_new", "labels"),
            "subject": _first(record.get("subject", record.get("concept"))),
            "ground_truth": _first(record.get("ground_truth")),
            "rephrases": tuple(prefix + r for prefix in prefixes for r in rephrases),
            "locality": locality,
            "portability": _kinds(record, "portability", left_out),
        }


def _zsre(record: Json, left_out: Counter[str]) -> Fields:
    """MEND's evaluation layout. "?" ends the questions of `loc`, as where ROME and MEMIT ask them.

    `alt` is the target (an empty one is skipped, as in EasyEdit), `answers` the truth. EasyEdit's
    files add `portability`.
    """
    if not _texts(record.get("alt")):
        raise _LeftOut("records without a target")
    hop = record.get("portability") or {}
    if not isinstance(hop, Mapping):
        raise RequestError("'portability' must be a dict.")
    hops = _probe(hop.get("New Question"), hop.get("New Answer"), left_out) if hop else []
    question = _text(record, "loc").removesuffix("?") + "?"
    return {
        "prompt": _text(record, "src"),
        "target_new": _text(record, "alt"),
        "subject": _first(record.get("subject")),
        "ground_truth": _first(record.get("answers")),
        "rephrases": (_text(record, "rephrase"),),
        "locality": {NEIGHBORHOOD: (Probe(question, (_text(record, "loc_ans"),)),)},
        "portability": {ONE_HOP: tuple(hops)} if hops else {},
    }


def _rome_counterfact(record: Json, left_out: Counter[str]) -> Fields:
    """ROME's nested CounterFact. Its neighbours' answer is the edit's old one.

    `attribute_prompts` and `generation_prompts` belong to measures that are not taken here.
    """
    rewrite = _dict(record, "requested_rewrite")
    subject = _text(rewrite, "subject")
    truth = _text(_dict(rewrite, "target_true"), "str")
    neighbours = _texts(record.get("neighborhood_prompts"))
    return {
        "prompt": _text(rewrite, "prompt").replace("{}", subject),
        "target_new": _text(_dict(rewrite, "target_new"), "str"),
        "subject": subject,
        "ground_truth": truth,
        "rephrases": _texts(record.get("paraphrase_prompts")),
        "locality": {NEIGHBORHOOD: tuple(Probe(n, (truth,)) for n in neighbours)}
        if neighbours
        else {},
    }


RIPPLE_LOCALITY = ("Relation_Specificity", "Forgetfulness")
RIPPLE_PORTABILITY = (
    "Logical_Generalization",
    "Compositionality_I",
    "Compositionality_II",
    "Subject_Aliasing",
)
_RIPPLE_SPELLINGS = {"Relation_Specificity": ("Relation_Specificity", "Relation_Specifity")}


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
                raise _LeftOut("edits whose subject and target cannot be told apart")
            end = places[0] + len(after)
        asked = words[:end]
        subject = asked[len(before) : len(asked) - len(after)]
        if before + subject + after != asked:
            subject = ()
        return " ".join(subject), " ".join(asked), " ".join(words[end:])

    def __call__(self, record: Json, left_out: Counter[str]) -> Fields:
        edit = _dict(record, "edit")
        subject, prompt, target = self.split(edit)
        # Only counterfactual edits (random.json, popular.json) have one; an earlier name follows.
        key = next((k for k in ("original_fact", "previous_fact") if edit.get(k)), None)
        previous = _dict(edit, key) if key else {}
        truth = _sentence(previous.get("prompt"))
        known = truth.startswith(prompt + " ")
        return {
            "prompt": prompt,
            "target_new": target,
            "subject": subject,
            "ground_truth": truth[len(prompt) :].strip() if known else "",
            "locality": _ripple_probes(record, RIPPLE_LOCALITY, left_out),
            "portability": _ripple_probes(record, RIPPLE_PORTABILITY, left_out),
        }


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
    names = _texts([[a.get("value"), a.get("aliases")] for a in _dicts(query, "answers")])
    return tuple(name for name in names if len(name) > 1 or name.isdigit())


def _ripple_probes(record: Json, kinds: Iterable[str], left_out: Counter[str]) -> Kinds:
    found = {}
    for kind in kinds:
        probes: list[Probe] = []
        for test in _ripple_tests(record, kind):
            presupposed = _dicts(test, "condition_queries")
            conditions = tuple(
                probe
                for query in presupposed
                for probe in _probe(query.get("prompt"), _ripple_names(query), Counter())
            )
            if len(conditions) < len(presupposed):
                left_out["tests with a condition without a question or an answer"] += 1
                continue
            for query in _dicts(test, "test_queries"):
                probes += _probe(query.get("prompt"), _ripple_names(query), left_out, conditions)
        if probes:
            found[kind] = tuple(probes)
    return found


Convert = Callable[[Json, "Counter[str]"], Fields]


@dataclass(frozen=True)
class Layout:
    """How a data set's records are written.

    keys: what its records have; "|" separates alternatives. The first layout whose keys are all
    in a file's first record is taken. converter: from all records of a file to the function that
    turns one of them into an EditRecord's fields.
    """

    name: str
    keys: tuple[str, ...]
    converter: Callable[[Sequence[Any]], Convert]

    def fits(self, record: Json) -> bool:
        return all(any(key in record for key in keys.split("|")) for keys in self.keys)


_COUNTERFACT = ("rephrase_prompt", "locality_prompt", "locality_ground_truth")
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("zsre", ("src", "alt", "loc"), lambda _: _zsre),
        Layout("rome_counterfact", ("requested_rewrite",), lambda _: _rome_counterfact),
        Layout("ripple_edits", ("example_type", "edit"), _RippleEdits),
        Layout(
            "dafset",
            ("prompt", "target_new", *_COUNTERFACT, "prefix"),
            lambda _: _Flat(*_COUNTERFACT),
        ),
        Layout(
            "knowedit",
            ("prompt|text", "target_new|labels", "locality|portability"),
            lambda _: _Flat(empty_target=True),
        ),
        Layout(
            "counterfact",
            ("prompt", "target_new", "subject", *_COUNTERFACT),
            lambda _: _Flat(*_COUNTERFACT),
        ),
        Layout("own", ("prompt", "target_new"), lambda _: _Flat()),
    )
}


def read_edits(path: str | Path, layout: str | None = None) -> list[EditRecord]:
    """All records of a .json, .jsonl or .csv file.

    layout: one of LAYOUTS; None finds it by the first record's keys.
    Records that a layout is known to hold but nobody can edit are left out, with a warning that
    counts them. Raises RequestError naming the file and what is wrong with it.
    """
    path = Path(path)
    records = load_records(path)
    if not records:
        raise RequestError(f"{path} holds no records.")
    found = _layout(path, records[0], layout)
    for i, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise RequestError(f"{path}: record {i} is a {type(record).__name__}, not a dict.")
    convert = found.converter(records)
    edits: list[EditRecord] = []
    left_out: Counter[str] = Counter()
    for i, (record_id, record) in enumerate(zip(_ids(records), records, strict=True)):
        try:
            edits.append(EditRecord(id=record_id, **convert(record, left_out)))
        except _LeftOut as reason:
            left_out[str(reason)] += 1
        except RequestError as error:
            raise RequestError(f"{path}: record {i} (layout {found.name}): {error}") from None
    counts = ", ".join(f"{what} ({count})" for what, count in left_out.items())
    if not edits:
        raise RequestError(f"{path} holds no record that can be edited; left out: {counts}.")
    if counts:
        logger.warning("%s: left out: %s.", path, counts)
    return edits


def _layout(path: Path, record: Any, name: str | None) -> Layout:
    if name is not None:
        if name not in LAYOUTS:
            raise RequestError(f"There is no layout {name!r}; known: {', '.join(LAYOUTS)}.")
        return LAYOUTS[name]
    keys = list(record) if isinstance(record, Mapping) else []
    for layout in LAYOUTS.values():
        if keys and layout.fits(record):
            return layout
    known = "; ".join(f"{known.name}: {', '.join(known.keys)}" for known in LAYOUTS.values())
    raise RequestError(
        f"{path} is in no known layout. The first record's keys are: {', '.join(keys) or 'none'}. "
        f"Layouts and the keys by which they are known: {known}."
    )


def _ids(records: Sequence[Json]) -> list[str]:
    """The data set's own numbers where each record has another one, or else their places."""
    ids = [_first(record.get("case_id")) for record in records]
    return ids if all(ids) and len(set(ids)) == len(ids) else [str(i) for i in range(len(ids))]


# --- Data sets by name ---

Reader = Callable[["Path | None"], Sequence[EditRecord]]
ENTRY_POINTS = "easyedit_dafnet.data"


def _facts(part: Literal["demo", "train"], path: Path | None) -> list[EditRecord]:
    """A part of the embedded facts; the parts share no subject."""
    if path is not None:
        raise RequestError(f"The embedded facts are in the package and not in {str(path)!r}.")
    convert = _Flat(*_COUNTERFACT)
    return [
        EditRecord(id=str(record["case_id"]), **convert(record, Counter()))
        for record in load_facts(part)
    ]


_READERS: dict[str, Reader] = {
    "facts": partial(_facts, "demo"),
    "facts-train": partial(_facts, "train"),
}


def register_data(name: str, reader: Reader) -> None:
    """Make a data set known by name; the last registration of a name counts.

    reader: from the file given with ``name=FILE``, or None without one, to the records.
    """
    _READERS[name] = reader


def data_names() -> list[str]:
    """Names that `data_source` knows without a layout: registered here or by an entry point."""
    plugins = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return sorted({*_READERS, *(plugin.name for plugin in plugins)})


def _reader(name: str) -> Reader | None:
    if name in _READERS:
        return _READERS[name]
    for plugin in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
        reader: Reader = plugin.load()
        return reader
    return None


@dataclass(frozen=True)
class DataSource:
    """A data set as the user names it. name: its name in results; path: None for none."""

    name: str
    path: Path | None = None

    def read(self) -> list[EditRecord]:
        """By the reader of this name, or else by the file's layout."""
        reader = _reader(self.name)
        if reader is None:
            if self.path is None:
                raise RequestError(f"The data set {self.name!r} needs a file: {self.name}=FILE.")
            return read_edits(self.path)
        records = list(reader(self.path))
        if not records or not all(isinstance(record, EditRecord) for record in records):
            raise RequestError(f"The reader of the data set {self.name!r} returned no EditRecords.")
        if len({record.id for record in records}) < len(records):
            raise RequestError(f"Two records of the data set {self.name!r} have the same id.")
        return records


def data_source(text: str | Path) -> DataSource:
    """Understand ``NAME``, ``FILE`` or ``NAME=FILE``; nothing is read.

    A file's name without its ending serves as NAME. Raises RequestError where there is neither a
    file nor a data set of that name.
    """
    given = str(text)
    name, equals, path = given.partition("=")
    if Path(given).is_file():
        name, path = Path(given).stem, given
    elif not equals:
        if given in data_names():
            return DataSource(given)
        near = difflib.get_close_matches(given, data_names(), 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RequestError(
            f"There is no file {given!r} and no data set of that name "
            f"(known: {', '.join(data_names())}).{hint}"
        )
    elif not Path(path).is_file():
        raise RequestError(f"There is no file {path!r} for the data set {name!r}.")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise RequestError(
            f"{name!r} cannot name a data set in the results; give a name of letters, digits, "
            "'_', '-' and '.' before the file: NAME=FILE."
        )
    return DataSource(name, Path(path))


def load_data(text: str | Path) -> list[EditRecord]:
    """The records of ``NAME``, ``FILE`` or ``NAME=FILE``."""
    return data_source(text).read()


# --- Files of known data sets ---


@dataclass(frozen=True)
class KnownFiles:
    """patterns: file names as published, the likeliest first; layouts: what such a file is in."""

    patterns: tuple[str, ...]
    layouts: tuple[str, ...]


KNOWN_FILES = {
    # EasyEdit's extract asks for portability, too.
    "zsre": KnownFiles(("zsre_mend_eval_portability*.json", "zsre_mend_eval*.json"), ("zsre",)),
    "counterfact": KnownFiles(
        (
            "counterfact-edit*.json",
            "counterfact-val*.json",
            "counterfact.json",
            "multi_counterfact*",
        ),
        ("counterfact", "rome_counterfact"),
    ),
    "ripple_edits": KnownFiles(("popular.json", "random.json", "recent.json"), ("ripple_edits",)),
    "ripple_popular": KnownFiles(("popular.json",), ("ripple_edits",)),
    "ripple_random": KnownFiles(("random.json",), ("ripple_edits",)),
    "ripple_recent": KnownFiles(("recent.json",), ("ripple_edits",)),
    "knowedit-zsre": KnownFiles(("*ZsRE-test-all.json", "*knowedit*zsre*.json"), ("knowedit",)),
    "knowedit-recent": KnownFiles(("*recent_test.json",), ("knowedit",)),
    "knowedit-counterfact": KnownFiles(("*test_cf.json",), ("knowedit",)),
    "knowedit-bio": KnownFiles(("wikibio-test*.json",), ("knowedit",)),
    "counterfact-train": KnownFiles(("counterfact-train*.json",), ("counterfact",)),
    **{
        f"dafset-{part.replace('_', '-')}": KnownFiles((f"{part}.json",), ("dafset",))
        for part in ("recent", "popular", "long_tail", "robust")
    },
}


def find_data(name: str, folders: Iterable[str | Path]) -> Path | None:
    """The file of a known data set in the folders and what is in them, or None.

    RippleEdits and DAFSet both have a "recent.json": a file in another layout is passed over.
    """
    known = KNOWN_FILES.get(name, KnownFiles((), ()))
    places = [Path(folder) for folder in folders]
    for pattern in known.patterns:
        for folder in places:
            for path in sorted(folder.rglob(pattern)):
                try:
                    records = load_records(path)
                    layout = _layout(path, records[0] if records else None, None)
                except RequestError:
                    continue
                if layout.name in known.layouts:
                    return path
    return None
