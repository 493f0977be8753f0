"""What a reader must know beside the numbers."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...edit_records import RELATION_SPECIFICITY
from ..same_subject import OF_EACH, OWN_QUESTIONS, OWN_TOKENS, UNCOUNTED
from .bootstrap import RESAMPLES, SEED
from .results import ASPECTS, SCORINGS
from .summary import SCORED, Row, Summary
from .wording import FEW, NOTHING, PARTIAL, counted, listed, name_of

TIMES = ("started", "finished")
PROTOCOL = (
    "All N edits are applied one after another, then all N are scored. N = 1: single edits, each "
    "on the unedited model."
)


def setup(summary: Summary) -> list[tuple[str, str]]:
    """What was run, where and with which versions; where runs differ, all values."""
    lines: dict[str, dict[str, None]] = {}

    def add(name: str, value: Any) -> None:
        if value not in (None, "", [], {}):
            lines.setdefault(name.replace("_", " "), {}).setdefault(in_words(value))

    for run in summary.runs:
        add("protocol", run.suite.get("protocol"))
        add("model", run.model)
        for name, source in (run.suite.get("data") or {}).items():
            add("data", data_words(name, source))
        for name, value in (run.suite.get("common") or {}).items():
            add("model's fingerprint" if name == "model" else name, value)
        add("command", whole_command(run.suite.get("command")))
    bodies = [
        cell.body
        for run in summary.runs
        for cell in (*run.cells.values(), *run.sanity_cells.values())
    ]
    for body in bodies:
        add("protocol", body.get("protocol"))
        add("peak memory", body.get("peak_memory_kind"))
        for name, value in (body.get("environment") or {}).items():
            add(name, whole_command(value) if name == "command" else value)
    times = sorted(str(body[when]) for body in bodies for when in TIMES if body.get(when))
    if times:
        add("run between", f"{times[0]} and {times[-1]}")
    return [(name, "; ".join(values)) for name, values in lines.items()]


def whole_command(command: str | None) -> str | None:
    """The command that makes the whole run, without the --only of one that made a part of it."""
    if command is None:
        return None
    words: list[str] = []
    skipping = False
    for word in shlex.split(command):
        if word.startswith("-"):
            skipping = word == "--only" or word.startswith("--only=")
        if not skipping:
            words.append(word)
    return shlex.join(words)


def data_words(name: str, source: Mapping[str, Any]) -> str:
    """counterfact: counterfact-edit.json, 2,000 records, 1,990 of them usable, digest 0123abcd."""
    parts = [Path(str(source["path"])).name] if source.get("path") else []
    if "records" in source:
        parts.append(counted(int(source["records"]), "record"))
    if source.get("usable", source.get("records")) != source.get("records"):
        parts.append(f"{int(source['usable']):,} of them usable")
    parts += [f"digest {source['digest']}"] if source.get("digest") else []
    return f"{name}: {', '.join(parts)}"


def in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {in_words(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(f"({in_words(v)})" if isinstance(v, Mapping) else str(v) for v in value)
    return str(value)


def capability_rows(summary: Summary) -> Iterator[tuple[Row, int, str]]:
    """The row, the stream's number, and what the tasks found."""
    for row in summary.rows:
        for cell in row.cells:
            if cell.body.get("capability"):
                yield row, cell.key.stream, in_words(cell.body["capability"])


def counts(rows: Iterable[Row]) -> str:
    """12 cells done, 1 failed, 3 not run."""
    rows = list(rows)
    done = sum(len(row.cells) for row in rows)
    failed = sum(len(row.failures) for row in rows)
    missing = sum(len(row.not_run) for row in rows)
    parts = [f"{counted(done, 'cell')} done"]
    parts += [f"{failed:,} failed"] if failed else []
    if missing:
        hours = [row.hours for row in rows if row.not_run]
        known = sum(h for h in hours if h is not None)
        unknown = "more than " if None in hours else ""
        parts.append(f"{missing:,} not run ({unknown}about {known:.2g} h)")
    return ", ".join(parts)


def sanity_notes(summary: Summary) -> list[str]:
    """† for the methods whose single edits do not reach what their papers report."""
    found = []
    for label, sanity in summary.doubtful().items():
        if sanity.error:
            found.append(f"{label} (failed: {sanity.error})")
            continue
        parts = []
        for name, wanted in sanity.expected.items():
            value = sanity.found.get(name)
            shown = NOTHING if value is None else f"{value:.2f}"
            parts.append(f"{name} expected at least {wanted:.2f}, found {shown}")
        found.append(f"{label} ({'; '.join(parts)})")
    if not found:
        return []
    return [
        "† Sanity cell not passed, by more than chance, so the numbers here are no fair picture of "
        "the method: " + ", ".join(found) + "."
    ]


def failure_notes(summary: Summary) -> list[str]:
    """‡ for the failed cells, those of a row with the same error together."""
    notes = []
    for row in summary.rows:
        streams: dict[str, list[str]] = {}
        for cell in row.failures:
            streams.setdefault(cell.error, []).append(str(cell.key.stream))
        place = f"{row.label} on {row.data}, N = {row.num_edits:,}"
        notes += [f"‡ {place}, stream {', '.join(s)}: {error}" for error, s in streams.items()]
    return notes


def together_notes(summary: Summary) -> list[str]:
    """Which methods see more edits at once than others."""
    found: dict[str, int] = {}
    for row in summary.rows:
        for cell in row.cells:
            size = int(cell.body["cell"].get("batch_size") or 1)
            if size == row.num_edits > 1:
                found[row.label] = size
    if not found:
        return []
    return [f"All edits of a stream at once, not one after another: {', '.join(found)}."]


def method_notes(summary: Summary) -> list[str]:
    """What the methods say of the form in which they ran."""
    notes = {
        f"{label}: {entry['note']}": None
        for run in summary.runs
        for label, entry in (run.suite.get("methods") or {}).items()
        if entry.get("note")
    }
    return [f"{note}." for note in notes]


def absent_notes(summary: Summary) -> list[str]:
    """What was asked for and is in no plan, and why."""
    return [
        f"Not run: {name}: {reason}"
        for run in summary.runs
        for name, reason in (run.suite.get("left_out") or {}).items()
    ]


def left_out_notes(summary: Summary) -> list[str]:
    """How many probes were not asked; their conditions depend on the unedited model alone."""
    notes = []
    for data in summary.data:
        for num_edits in summary.lengths(data):
            row = max(summary.of(data, num_edits), key=lambda row: len(row.cells))
            counts = [cell.body.get("probes_left_out") or {} for cell in row.cells]
            sums = {aspect: sum(c.get(aspect, 0) for c in counts) for aspect in ASPECTS}
            parts = [f"{count:,} of {name_of(aspect)}" for aspect, count in sums.items() if count]
            if parts:
                notes.append(
                    "Probes left out, because the unedited model does not know what they "
                    f"presuppose, on {data}, N = {num_edits:,}: {', '.join(parts)}"
                )
    return notes


def score_notes(summary: Summary) -> list[str]:
    """§ for the scores that are not over all of SCORED: which, and over what they are."""
    return [note for data in summary.data for note in score_notes_of(summary, data)]


def score_notes_of(summary: Summary, data: str) -> list[str]:
    found: dict[tuple[str, ...], tuple[set[str], dict[str, None]]] = {}
    for row in summary.of(data):
        for scoring in row.scores:
            if (parts := row.scored(scoring)) not in ((), SCORED):
                scorings, labels = found.setdefault(parts, (set(), {}))
                scorings.add(scoring)
                labels[row.label] = None
    notes = []
    for parts, (scorings, labels) in found.items():
        whole = labels.keys() == {row.label for row in summary.of(data) if row.cells}
        place = [data, *([] if whole else labels)]
        if scorings != {*summary.scorings}:
            place += [SCORINGS[name].lower() for name in SCORINGS if name in scorings]
        left = listed([name for name in SCORED if name not in parts])
        notes.append(
            f"{PARTIAL} {', '.join(place)}: the score is over {listed(parts)} alone; not asked: "
            f"{left}."
        )
    return notes


def same_subject_notes(summary: Summary) -> list[str]:
    """Which questions of the edited subject a data set is asked."""
    notes = []
    for data in summary.data:
        kinds = {
            kind: None for row in summary.of(data) for kind in row.kinds.get("same_subject", ())
        }
        if kinds:
            notes.append(f"Questions of the same subject on {data}: {' and '.join(kinds)}.")
    return notes


def reading_notes() -> list[str]:
    return [
        PROTOCOL,
        f"The score is the harmonic mean of {listed(SCORED)}, or of what is asked of them "
        f"({PARTIAL}); scores over different parts cannot be compared. Locality is that of other "
        "subjects, and compares with what the unedited model says. A text begins with the answer "
        "where it opens with it; for locality, where its first word is that of the unedited "
        "model's.",
        "Same subject is locality of the edited subject: other relations of it, compared in the "
        "same way (relation specificity in KnowEdit and RippleEdits). Of a data set that brings no "
        f"such questions it asks the benchmark's own ({OWN_QUESTIONS}), {2 * OF_EACH} a record, "
        f"with the first {OWN_TOKENS} tokens of what the unedited model says as the answer; not "
        f"where that model stops at once. Numbers of {OWN_QUESTIONS} and of {RELATION_SPECIFICITY} "
        f"cannot be compared. {listed(UNCOUNTED)} asks the edited relation itself, with the target "
        "in the question, and counts in neither locality. Leaks are the share of the same-subject "
        "questions at which the edited model puts the target's first token first and the unedited "
        "model did not; lower is better, and they are teacher-forced alone.",
        "± is half the width of a 95 % interval over the edits; of fewer than "
        f"{FEW} edits its ends are shown instead, and their number n where it is not that of the "
        "column edits. Bootstrap: streams are drawn "
        f"with replacement, then the edits of each ({RESAMPLES:,} resamples, seed {SEED}, the same "
        "for all methods with the same streams), and each resample leaves room for edits unlike "
        "those seen, as if one that scores 0 and one that scores 1 had been among them. So edits "
        "that all score alike have an interval, too: close to Wilson's, it says what so few are "
        "worth. It cannot tell how other streams would differ where there is one. The unedited "
        "model's locality, also of the same subject, is 1 by definition. Slow methods may have "
        "fewer streams, so other edits, than those beside them: the last columns tell.",
        "Streams that failed or were not run are left out of the means. The hours of cells that "
        "were not run are estimated from the method's nearest cells.",
        "State is what a method keeps for its edits beside the model's weights: a constant part, "
        "and what each edit adds. They are told apart by the state after the first edits and after "
        "the last, or after streams of two lengths. Perplexity is that "
        "of plain text before and after the edits. Preparation, such as training, comes once, "
        "before the first edit; of a network that comes trained it is the time that its card says.",
    ]
