"""What a data set's build.json tells, in words: for its card and its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..bench.report.wording import bytes_text, counted
from .dataset import DataSet

NAMES = {"recent": "recent", "popular": "popular", "long_tail": "long tail", "robust": "robust"}


def meanings(dataset: DataSet) -> dict[str, str]:
    """What the records of each property are chosen for, with the thresholds."""
    limits = dataset.build.get("thresholds") or {}
    return {
        "recent": "Facts about subjects whose items in Wikidata were modified shortly before the "
        f"dump{_limit(limits, 'modified', ', from {:.10} on')}. The new target is what the dump "
        "says.",
        "popular": "Counterfactual edits of subjects whose Wikipedia pages are read "
        f"often{_limit(limits, 'views', ', with {:,} views or more')}. The new target is untrue, "
        "but near the truth: it answers the same question for another subject, and shares a "
        "neighbour in Wikidata with the true answer.",
        "long_tail": "Facts about subjects that are hardly known"
        f"{_limit(limits, 'frequency', ', with at most {:,} mentions in the text')}"
        f"{_limit(limits, 'degree', ', in at most {:,} statements of Wikidata')}"
        f"{_likelihood(limits)}. The new target is what the dump says.",
        "robust": "Counterfactual edits like the popular ones, of other subjects, that come with "
        "texts to put before a question (`prefix`: short, long, about something else, cheerful, "
        "gloomy) and, where there is one, with a question about another subject that keeps what "
        "the edit takes away (`opposite`).",
    }


def _limit(limits: Mapping[str, Any], name: str, words: str) -> str:
    value = limits.get(name)
    return "" if value is None else words.format(value)


def _likelihood(limits: Mapping[str, Any]) -> str:
    value = limits.get("log_likelihood")
    if value is None:
        return ""
    most = f"log-likelihood {likelihood_text(value)} a token at most"
    return f", whose answer a language model does not expect ({most})"


def likelihood_text(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def origin(dataset: DataSet) -> str:
    """The dump and its date."""
    dump = dataset.build.get("dump") or {}
    date = f" of {str(dump['date'])[:10]}" if dump.get("date") else ""
    return f"{dump.get('name', 'a dump')}{date}"


def sources(dataset: DataSet) -> list[tuple[str, str, str]]:
    """What the data set was made from: a kind, a name and its size, date and checksum."""
    build = dataset.build
    found = [("Wikidata dump", build.get("dump") or {})]
    found += [("Wikipedia page views", file) for file in build.get("views") or []]
    found += [("Text", file) for file in build.get("text") or []]
    found += [("Language model", build["model"])] if build.get("model") else []
    return [(kind, str(file.get("name", "unnamed")), _details(file)) for kind, file in found]


def _details(file: Mapping[str, Any]) -> str:
    told = [bytes_text(file["bytes"])] if file.get("bytes") is not None else []
    told += [str(file["date"])] if file.get("date") else []
    told += [f"SHA-256 {file['sha256']}"] if file.get("sha256") else []
    return ", ".join(told)


def kept_apart(dataset: DataSet) -> str | None:
    """The files that share no subject and no prompt with the records, and what was left out for
    that; None: there are none."""
    excluded = dataset.build.get("excluded") or {}
    if not excluded.get("files"):
        return None
    files = ", ".join(map(str, excluded["files"]))
    subjects, facts, prompts = (excluded.get(name, 0) for name in ("subjects", "facts", "prompts"))
    return (
        f"{files} (left out: {counted(subjects, 'subject')} with {counted(facts, 'fact')}, "
        f"{counted(prompts, 'record')} by a prompt)"
    )


def counts(dataset: DataSet) -> list[tuple[str, int]]:
    """What was read and chosen from, then what was skipped, by reason."""
    told = dataset.build["counts"]
    found = [
        (f"{name} read" if name != "candidates" else "facts to choose from", told[name])
        for name in ("items", "statements", "candidates")
        if told.get(name) is not None
    ]
    skipped = (told.get("skipped") or {}).items()
    return found + [(f"skipped: {reason}", count) for reason, count in skipped]
