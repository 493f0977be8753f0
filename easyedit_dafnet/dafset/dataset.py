"""A finished data set: the folder that `easyedit-dafnet dafset build` writes.

>>> from easyedit_dafnet.dafset.dataset import read_dataset
>>> dataset = read_dataset(Path("dafset"))
>>> [record["prompt"] for record in dataset.records["popular"]]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import DamagedFile, Kind, check_content

PROPERTIES = ("recent", "popular", "long_tail", "robust")
"""What records are chosen for; each has a file of its own."""

PROBES = ("one_hop", "subject_alias", "inverse")
"""The kinds of question about portability."""

BUILD, ALL = "build.json", "dafset.jsonl"
FORMAT = 1
DATA_SET = Kind(
    "a data set of `dafset build`",
    BUILD,
    lambda build: build.get("format") == FORMAT and "easyedit_dafnet" in build.get("versions", ()),
)

TEXTS = (
    "property",
    "prompt",
    "target_new",
    "subject",
    "ground_truth",
    "rephrase_prompt",
    "locality_prompt",
    "locality_ground_truth",
    "relation",
    "relation_name",
)
ENTITIES = ("head", "tail", "target_new", "neighbour_head", "neighbour_tail")
COUNTS = ("views", "frequency", "degree")

Record = dict[str, Any]


class DataSetError(ValueError):
    """A folder without a usable data set; the message says what is wrong and where."""


@dataclass(frozen=True)
class DataSet:
    """records: by property. build: what it was made from and how, as in build.json."""

    folder: Path
    records: Mapping[str, list[Record]]
    build: Mapping[str, Any]

    def __iter__(self) -> Iterator[Record]:
        for records in self.records.values():
            yield from records

    def __len__(self) -> int:
        return sum(map(len, self.records.values()))


def read_dataset(folder: Path) -> DataSet:
    """The data set of a folder. Whether its records are complete, `faults` says.

    Raises:
        DataSetError: there is none, or a file of it cannot be read.
    """
    needed = [BUILD, ALL, *map(file_name, PROPERTIES)]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise DataSetError(
            f"{folder} is no finished data set, as it has no {', '.join(missing)}: "
            "give a folder that `easyedit-dafnet dafset build` has written."
        )
    build = _read(folder / BUILD)
    if not isinstance(build, dict) or not isinstance(build.get("counts"), dict):
        raise _damaged(folder / BUILD, "it must be an object with counts")
    records = {name: _read(folder / file_name(name)) for name in PROPERTIES}
    for name, listed in records.items():
        if not (isinstance(listed, list) and all(isinstance(r, dict) for r in listed)):
            raise _damaged(folder / file_name(name), "it must be a list of records")
    return DataSet(folder, records, build)


def read_complete(folder: Path) -> DataSet:
    """The data set of a folder, all of whose records have what they need.

    Raises:
        DataSetError: there is none, or it is damaged.
    """
    dataset = read_dataset(folder)
    for name, records in dataset.records.items():
        for number, record in enumerate(records, 1):
            for fault in faults(record):
                raise _damaged(folder / file_name(name), f"in record {number}, {fault}")
    return dataset


def lines(dataset: DataSet) -> Iterator[Record]:
    """The records of dafset.jsonl.

    Raises:
        DataSetError: a line of it is no record.
    """
    path = dataset.folder / ALL
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise _damaged(path, f"line {number}: {error}") from None
            if not isinstance(record, dict):
                raise _damaged(path, f"line {number} is no record")
            yield record


def prompts_of(record: Record) -> set[str]:
    """All that it asks: its own prompt and rephrases, and those of its probes."""
    probes = [probe for kind in record["portability"].values() for probe in kind]
    probes += [record["opposite"]] if record["opposite"] else []
    own = {record["prompt"], *record["rephrase_prompts"], record["locality_prompt"]}
    return own | {probe["prompt"] for probe in probes}


def file_name(name: str) -> str:
    """The file of a property."""
    return f"{name}.json"


def faults(record: Record) -> list[str]:
    """What the record lacks to be used at all."""
    wikidata, stats = record.get("wikidata"), record.get("stats")
    found = [f"{name} is no text" for name in TEXTS if not _is_text(record.get(name))]
    if not (record.get("rephrase_prompts") and _are_texts(record["rephrase_prompts"])):
        found.append("rephrase_prompts is no list of texts")
    if not _are_texts(record.get("prefix")):
        found.append("prefix is no list of texts")
    if not isinstance(record.get("counterfactual"), bool):
        found.append("counterfactual is neither true nor false")
    if not (isinstance(wikidata, dict) and all(_is_text(wikidata.get(e)) for e in ENTITIES)):
        found.append(f"wikidata does not name {', '.join(ENTITIES)}")
    if not (isinstance(stats, dict) and _are_stats(stats)):
        found.append(f"stats is not made of modified, {', '.join(COUNTS)} and log_likelihood")
    return found + _probe_faults(record)


def _probe_faults(record: Record) -> list[str]:
    portability, opposite = record.get("portability"), record.get("opposite")
    if not (isinstance(portability, dict) and set(portability) <= set(PROBES)):
        return [f"portability has something else than {', '.join(PROBES)}"]
    found = [
        f"a probe of {kind} has no prompt or no ground_truth"
        for kind, probes in portability.items()
        if not (isinstance(probes, list) and all(map(_is_probe, probes)))
    ]
    if not (opposite is None or _is_probe(opposite)):
        found.append("opposite has no prompt or no ground_truth")
    return found


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(map(_is_text, values))


def _is_probe(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_text(value.get(n)) for n in ("prompt", "ground_truth")
    )


def _are_stats(stats: Mapping[str, Any]) -> bool:
    likelihood, modified = stats.get("log_likelihood"), stats.get("modified")
    return (
        all(isinstance(stats.get(name), int) for name in COUNTS)
        and (likelihood is None or isinstance(likelihood, float | int))
        and (modified is None or _is_text(modified))
    )


def _read(path: Path) -> Any:
    try:
        check_content(path)
        return json.loads(path.read_bytes())
    except DamagedFile as error:
        raise DataSetError(f"{error} Build the data set again.") from None
    except RecursionError:
        raise _damaged(path, "it is nested too deeply") from None
    except ValueError as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, reason: str) -> DataSetError:
    return DataSetError(f"{path} is damaged: {reason}. Build the data set again.")
