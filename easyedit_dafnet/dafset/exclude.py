"""What a data set must not share with the records that editors are judged by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Excluded:
    """Subjects and prompts, in lower case; files: what they are from."""

    subjects: frozenset[str] = frozenset()
    prompts: frozenset[str] = frozenset()
    files: tuple[str, ...] = field(default=())

    @classmethod
    def read(cls, files: Iterable[str]) -> Excluded:
        """From files in any layout of the benchmark: CounterFact, ZsRE, RippleEdits, KnowEdit, ...

        files: paths, or NAME=PATH where the layout does not show.
        Raises RequestError for a file that cannot be read or is in no known layout.
        """
        from ..bench.data import load_data

        files = tuple(files)
        records = [record for file in files for record in load_data(file)]
        return cls(
            frozenset(r.subject.casefold() for r in records if r.subject),
            frozenset(prompt.casefold() for r in records for prompt in r.prompts()),
            files,
        )

    def has_subject(self, label: str) -> bool:
        return label.casefold() in self.subjects

    def has_prompt(self, prompts: Iterable[str]) -> bool:
        """Whether one of them is excluded."""
        return any(prompt.casefold() in self.prompts for prompt in prompts)
