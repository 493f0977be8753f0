"""What the cells are made of: the records to edit and to train on, and plain text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..dafnet_hparams import nearest
from ..edit_records import EditRecord
from ..text import moment_passages, perplexity_passages, text_name
from .data import KNOWN_FILES, DataSource, data_names, find_data, load_data
from .streams import usable
from .suite import Suite, SuiteError


class UnknownData(SuiteError):
    """A data set has no file and a name that the benchmark does not know."""


class EvaluatedMissing(SuiteError):
    """Records that are evaluated are not at hand, so that training could learn them."""


@dataclass(frozen=True)
class DataSet:
    """The records that every method can edit; dropped: how many others the source has."""

    path: str  #: "" without a file
    records: Sequence[EditRecord]
    dropped: int

    @classmethod
    def find(cls, name: str, path: str, folders: Sequence[str]) -> DataSet:
        """Read the set; without a path, look for it. Raises OSError, ValueError, ImportError."""
        if not path and name not in data_names():
            if name not in KNOWN_FILES:
                known = nearest(name, {*KNOWN_FILES, *data_names()})
                raise UnknownData(f"no data set has this name and no file was given; {known}")
            found = find_data(name, folders)
            if found is None:
                raise SuiteError(
                    f"no file of it is in {', '.join(folders)}: name its folder with --data-dir, "
                    f"or the file with --data {name}=FILE"
                )
            path = str(found.absolute())
        kept, dropped = usable(DataSource(name, Path(path) if path else None).read())
        return cls(path, kept, dropped)

    @classmethod
    def again(
        cls, name: str, planned: Mapping[str, Any], path: str, folders: Sequence[str]
    ) -> DataSet:
        """The set that a run's plan names: at `path`, where it was, or in the folders.

        Raises as `find` does, and SuiteError when its records have changed.
        """
        path = path or str(planned["path"])
        if path and not Path(path).exists() and name in KNOWN_FILES:
            path = ""
        data = cls.find(name, path, folders)
        if data.describe()["digest"] != planned["digest"]:
            raise SuiteError(f"The records of {name} have changed since the run began.")
        return data

    @property
    def most_edits(self) -> int:
        """How many edits a stream can have; no two share subject and prompt."""
        return len({(record.subject, record.prompt) for record in self.records})

    def describe(self) -> dict[str, Any]:
        """For suite.json."""
        return {
            "path": self.path,
            "records": len(self.records) + self.dropped,
            "usable": self.most_edits,
            "digest": digest(self.records),
        }


@dataclass(frozen=True)
class Passages:
    """Plain text: one part for the methods, one that only measures perplexity."""

    name: str
    methods: Sequence[str]
    perplexity: Sequence[str]

    @classmethod
    def load(cls, suite: Suite) -> Passages:
        path = suite.text or None
        measured = perplexity_passages(path)[: suite.perplexity_passages]
        return cls(text_name(path), moment_passages(path), measured)


def digest(values: Sequence[Any]) -> str:
    """Identifies records or passages, in their order."""
    plain = [asdict(v) if isinstance(v, EditRecord) else v for v in values]
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    return sha256(text.encode()).hexdigest()[:16]


class TrainingRecords(Sequence[EditRecord]):
    """The records to train on, read when first asked for: most methods never do.

    Those that share a prompt of any kind with a record that is evaluated are left out.
    folders: where the files of known sets are. sets: all data sets that are evaluated.
    """

    def __init__(
        self,
        sources: Sequence[str],
        folders: Sequence[str],
        sets: Callable[[], Iterable[DataSet]],
    ) -> None:
        self.sources, self.folders, self.sets = sources, folders, sets
        self.left_out = 0

    @cached_property
    def records(self) -> list[EditRecord]:
        if not self.sources:  # then the evaluated sets, which may not be at hand, do not matter
            return []
        given = [record for source in self.sources for record in self._read(source)]
        try:
            records = [record for data in self.sets() for record in data.records]
        except (OSError, ValueError, ImportError) as error:
            raise EvaluatedMissing(
                f"training must leave out what is evaluated, and that is not at hand: {error}"
            ) from error
        evaluated = {prompt for record in records for prompt in record.prompts()}
        kept = [record for record in given if evaluated.isdisjoint(record.prompts())]
        self.left_out = len(given) - len(kept)
        return kept

    def _read(self, source: str) -> Sequence[EditRecord]:
        if source not in KNOWN_FILES:
            return load_data(source)
        path = find_data(source, self.folders)
        if path is None:
            raise SuiteError(
                f"{source}, to train on, has no file in {', '.join(self.folders)}: name its folder "
                "with --data-dir"
            )
        return load_data(path)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        return self.records[index]
