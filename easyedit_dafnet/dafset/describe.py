"""What a data set's build.json tells, in words: for its card and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..bench.report.wording import bytes_text, counted
from ..sources import Source
from .dataset import DataSet
from .dump import WIKIDATA
from .embedded import EMBEDDED, NAME
from .provenance import FactSource, Popularity
from .views import PAGE_VIEWS

NAMES = {"recent": "recent", "popular": "popular", "long_tail": "long tail", "robust": "robust"}


def fact_source(dataset: DataSet) -> FactSource:
    """What its facts were read from."""
    return EMBEDDED if (dataset.build.get("dump") or {}).get("name") == NAME else WIKIDATA


def popularity(dataset: DataSet) -> Popularity | None:
    """What its records call `views`; None: nothing told how well known a subject is."""
    return PAGE_VIEWS if dataset.build.get("views") else fact_source(dataset).popularity


def publishers(dataset: DataSet) -> list[Source]:
    """Whose data is in it."""
    known = popularity(dataset)
    return [*fact_source(dataset).sources, *(known.sources if known else ())]


def signals(dataset: DataSet) -> dict[str, str]:
    """Names of what was measured of each subject, by what records call it."""
    known = popularity(dataset)
    found = {"views": known.name} if known else {}
    found |= {"frequency": "mentions"} if dataset.build.get("text") else {}
    return found | {"degree": "statements"}


def meanings(dataset: DataSet) -> dict[str, str]:
    """What the records of each property are chosen for, with the thresholds."""
    limits = dataset.build.get("thresholds") or {}
    facts, known = fact_source(dataset), popularity(dataset)
    if known:
        popular = (
            f"Counterfactual edits of {known.popular}{_limit(limits, 'views', known.limit)}. The "
            "new target is untrue, but near the truth: it answers the same question for another "
            "subject, and shares a neighbour among the facts with the true answer."
        )
    else:
        popular = (
            "No records: no page views were given, so nothing tells which subjects are well known."
        )
    return {
        "recent": facts.recent.format(_limit(limits, "modified", ", from {:.10} on")),
        "popular": popular,
        "long_tail": _long_tail(dataset, limits),
        "robust": "Counterfactual edits of other subjects, with targets as near the truth, that "
        "come with texts to put before a question (`prefix`: short, long, about something else, "
        "cheerful, gloomy) and, where there is one, with a question about another subject that "
        "keeps what the edit takes away (`opposite`).",
    }


def stats(dataset: DataSet) -> str:
    """What a record's `stats` of its subject are."""
    known = popularity(dataset)
    views = known.meaning if known else "0, as no page views were given"
    text = "how often the text names it" if dataset.build.get("text") else "0, as there was no text"
    return (
        f"of the subject: `modified`, when it was last changed, where known; `views`, {views}; "
        f"`frequency`, {text}; `degree`, how many statements it is in; and `log_likelihood`, the "
        "mean of the true answer's tokens under the language model, where it was measured"
    )


def limits(dataset: DataSet) -> str:
    """What popular and rare mean here."""
    names = list(signals(dataset).values())
    model = ", what is unexpected by the language model" if dataset.build.get("model") else ""
    return f"What is popular or rare is told by numbers of {joined(names)} alone{model}."


def joined(names: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _long_tail(dataset: DataSet, limits: Mapping[str, Any]) -> str:
    degree = _limit(limits, "degree", ", in at most {:,} statements")
    if dataset.build.get("text") or dataset.build.get("model"):
        frequency = ""
        if dataset.build.get("text"):
            frequency = _limit(limits, "frequency", ", with at most {:,} mentions in the text")
        chosen = f"that are hardly known{frequency}{degree}{_likelihood(limits)}"
    else:
        chosen = (
            f"that little is said about{degree}; neither a text nor a language model was given to "
            "tell more of how well known they are"
        )
    return (
        f"Facts about subjects {chosen}. The new target is the true answer, which the model to be "
        "edited may not know."
    )


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
    """What its facts were read from, by name, and its date."""
    dump = dataset.build.get("dump") or {}
    date = f" of {str(dump['date'])[:10]}" if dump.get("date") else ""
    return f"{dump.get('name', 'a dump')}{date}"


def sources(dataset: DataSet) -> list[tuple[str, str, str]]:
    """What the data set was made from: a kind, a name and its size, date and checksum."""
    build = dataset.build
    found = [(fact_source(dataset).kind, build.get("dump") or {})]
    found += [("Wikipedia page views", file) for file in build.get("views") or []]
    found += [("Text", file) for file in build.get("text") or []]
    found += [("Language model", build["model"])] if build.get("model") else []
    return [(kind, str(file.get("name", "unnamed")), _details(file)) for kind, file in found]


def packages(dataset: DataSet) -> dict[str, str]:
    """The packages that its publishers' data came with, with their versions."""
    versions = dataset.build.get("versions") or {}
    names = (source.package for source in publishers(dataset) if source.package)
    return {name: f"{name} {versions[name]}" if name in versions else name for name in names}


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
