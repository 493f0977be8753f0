"""The data set's README.md: what is in it, where it comes from, and how to load it."""

from __future__ import annotations

from pathlib import Path

from ..files import write_text
from ..sources import MIT
from . import describe
from .dataset import ALL, PROPERTIES, DataSet, file_name, read_complete
from .pages import environment

SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
}
"""As the Hugging Face hub names them: below so many records."""


def write_card(folder: Path) -> Path:
    """Write README.md into the data set's folder.

    Raises:
        DataSetError: the folder has no data set, or a damaged one.
    """
    path = folder / "README.md"
    write_text(path, to_markdown(read_complete(folder)))
    return path


def to_markdown(dataset: DataSet) -> str:
    build = dataset.build
    filled = [name for name in PROPERTIES if dataset.records[name]]
    facts, published = describe.fact_source(dataset), describe.publishers(dataset)
    licences = list(dict.fromkeys([*(source.licence for source in published), MIT]))
    return (
        environment(autoescape=False)
        .get_template("card.md.jinja")
        .render(
            dataset=dataset,
            language=(build.get("settings") or {}).get("language", "en"),
            size=size_category(len(dataset)),
            # A file without records has no columns to load.
            configs={**({"default": ALL} if filled else {}), **{n: file_name(n) for n in filled}},
            tags=["model-editing", "knowledge-editing", *facts.tags],
            licences=licences,
            # The hub takes the name and address of one that it does not list.
            unlisted=next((licence for licence in licences if licence.hub == "other"), None),
            own=MIT,
            facts=facts,
            facts_from=describe.joined([source.name for source in facts.sources]),
            publishers=published,
            packages=describe.packages(dataset),
            names=describe.NAMES,
            meanings=describe.meanings(dataset),
            stats=describe.stats(dataset),
            limits=describe.limits(dataset),
            origin=describe.origin(dataset),
            sources=describe.sources(dataset),
            counts=describe.counts(dataset),
            kept_apart=describe.kept_apart(dataset),
            command=build.get("command"),
            seed=build.get("seed"),
            settings=build.get("settings") or {},
            versions=build.get("versions") or {},
            measured_on=[name for name in ("text", "model") if build.get(name)],
        )
    )


def size_category(records: int) -> str:
    return next((name for below, name in SIZES.items() if records < below), "n>10M")
