"""What a data set must not share with the records that editors are judged by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256


def folded(text: str) -> str:
    """As the engines compare labels: in lower case, with one σ and one i (see `select`)."""
    return text.lower().replace("ς", "σ").replace("i\u0307", "i")


@dataclass(frozen=True)
class Excluded:
    """Subjects and prompts, `folded`."""

    subjects: frozenset[str] = frozenset()
    prompts: frozenset[str] = frozenset()

    @classmethod
    def read(cls, files: Iterable[str]) -> Excluded:
        """From files in any layout of the benchmark: CounterFact, ZsRE, RippleEdits, KnowEdit, ...

        files: paths, or NAME=PATH where the layout does not show.
        Raises RequestError for a file that cannot be read or is in no known layout.
        """
        from ..bench.data import load_data

        records = [record for file in files for record in load_data(file)]
        return cls(
            frozenset(folded(r.subject) for r in records if r.subject),
            frozenset(folded(prompt) for r in records for prompt in r.prompts()),
        )

    @property
    def digest(self) -> str:
        """Tells whether anything else is excluded."""
        texts = "\n".join([*sorted(self.subjects), "", *sorted(self.prompts)])
        return sha256(texts.encode()).hexdigest()

    def has_prompt(self, prompts: Iterable[str]) -> bool:
        """Whether one of them is excluded."""
        return any(folded(prompt) in self.prompts for prompt in prompts)
