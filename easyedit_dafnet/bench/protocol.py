"""How one cell is edited, scored and measured: all edits of a stream first, then all scores."""

from __future__ import annotations

import gc
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch

from ..edit_records import EditRecord
from .memory import PeakMemory
from .method import Method
from .scoring import SCORINGS, Scorer, Scores
from .unedited_model import UneditedModel

#: Of edits on their own only the first measure perplexity; it takes longer than all their scores.
PERPLEXITY_SINGLES = 3
LARGEST_PERPLEXITY = 1e300  # JSON has no infinity

Unedited = Mapping[str, Mapping[str, Any]]


@dataclass
class Protocol:
    """Runs cells of one method; every method goes through the same code.

    text: passages for perplexity; before: the unedited model's perplexity and how many tokens that
    is over, or None without text. capability: tasks of lm-evaluation-harness. seed: of the
    first stream's random numbers, the same for all methods. progress is called
    with the number of edits done.
    """

    method: Method
    unedited_model: UneditedModel
    scorer: Scorer
    text: Sequence[str]
    before: Mapping[str, Any] | None
    capability: Sequence[str]
    capability_limit: int
    device: str
    seed: int
    progress: Callable[[str, int], None]

    def run(
        self, records: Sequence[EditRecord], unedited: Unedited, single: bool, batch_size: int
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The part of a result that is measured, and the texts.

        single: each record is edited alone, on the unedited model. batch_size: records that are
        edited together. unedited: what the unedited model says of the records.
        """
        measured = _Measured()
        start = time.perf_counter()
        streams = [[record] for record in records] if single else [list(records)]
        for number, stream in enumerate(streams):
            start_random_numbers((self.seed + number) % 2**32)
            self.method.start(self.unedited_model.put_back())
            peak = PeakMemory(self.device)
            size = len(stream) if self.method.whole_stream else batch_size
            held: list[int] = []  # bytes after the first and after the last batch
            for batch in _batches(stream, size):
                seconds = self._edit(batch)
                measured.per_edit += [seconds / len(batch)] * len(batch)
                self.progress("editing", len(measured.per_edit))
                if not held:
                    held.append(self.method.state_bytes())
            held.append(self.method.state_bytes())
            measured.add_memory(peak, held[-1])
            if len(stream) > size:
                measured.state_growth = (held[-1] - held[0]) / (len(stream) - size)
            self.progress("scoring", len(measured.per_edit))
            began = time.perf_counter()
            measured.scores.append(
                self.scorer.score(
                    self.method.model,
                    stream,
                    unedited,
                    ask=self.method.ask,
                    one_by_one=self.method.one_by_one,
                )
            )
            measured.scoring += time.perf_counter() - began
            if self.text and number < PERPLEXITY_SINGLES:
                self.progress("measuring perplexity", len(measured.per_edit))
                perplexity, _ = self.scorer.perplexity(
                    self.method.model, self.text, self.method.one_by_one
                )
                measured.perplexities.append(min(perplexity, LARGEST_PERPLEXITY))
            if self.capability and not single:
                self.progress("measuring capability", len(measured.per_edit))
                measured.capability = self._capability()
            self.method.stop()
        self.unedited_model.put_back()
        gc.collect()
        texts = [text for scores in measured.scores for text in scores.texts]
        return measured.to_json(self.before, time.perf_counter() - start), texts

    def _capability(self) -> dict[str, Any]:
        from .capability import capability

        model, tok = self.method.model, self.scorer.tok
        return capability(model, tok, self.capability, self.capability_limit or None)

    def _edit(self, batch: Sequence[EditRecord]) -> float:
        """Seconds that it took."""
        requests = [record.request() for record in batch]
        self._wait_for_device()
        start = time.perf_counter()
        self.method.edit(requests)
        self._wait_for_device()
        return time.perf_counter() - start

    def _wait_for_device(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)


@dataclass
class _Measured:
    """What adds up over the streams of a cell."""

    scores: list[Scores] = field(default_factory=list)
    per_edit: list[float] = field(default_factory=list)  # seconds
    perplexities: list[float] = field(default_factory=list)
    scoring: float = 0.0  # seconds
    peak: int | None = None
    peak_kind: str | None = None
    state_bytes: int = 0
    state_growth: float | None = None  # bytes an edit, of a stream of several batches
    capability: Any = None

    def add_memory(self, peak: PeakMemory, state_bytes: int) -> None:
        found = peak.bytes()
        if found is not None:
            self.peak, self.peak_kind = max(found, self.peak or 0), peak.kind
        self.state_bytes = max(state_bytes, self.state_bytes)

    def to_json(self, before: Mapping[str, Any] | None, total: float) -> dict[str, Any]:
        perplexity = None
        if before is not None and self.perplexities:
            after = fmean(self.perplexities)
            perplexity = {
                "before": before["perplexity"],
                "after": after,
                "tokens": before["tokens"],
            }
        return {
            "scores": {name: _joined(getattr(s, name) for s in self.scores) for name in SCORINGS},
            "leaks": [share for s in self.scores for share in s.leaks],
            "kinds": _joined_kinds(self.scores),
            "probes_left_out": dict(sum((Counter(s.left_out) for s in self.scores), Counter())),
            "perplexity": perplexity,
            "seconds": {
                "edit": sum(self.per_edit),
                "per_edit": self.per_edit,
                "score": self.scoring,
                "total": total,
            },
            "peak_memory_bytes": self.peak,
            "peak_memory_kind": self.peak_kind,
            "state_bytes": self.state_bytes,
            "state_bytes_per_edit": self.state_growth,
            "capability": self.capability,
        }


def _batches(records: Sequence[EditRecord], size: int) -> Iterator[Sequence[EditRecord]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]


def _joined(parts: Iterable[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    joined: dict[str, list[Any]] = {}
    for part in parts:
        for name, numbers in part.items():
            joined.setdefault(name, []).extend(numbers)
    return joined


def _joined_kinds(parts: Sequence[Scores]) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """Of each kind one number a record, None where a stream does not have the kind."""
    joined: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for metric in dict.fromkeys(metric for part in parts for metric in part.kinds):
        kinds = dict.fromkeys(kind for part in parts for kind in part.kinds[metric])
        joined[metric] = {
            kind: _joined(
                part.kinds[metric].get(kind, {name: [None] * len(part.texts) for name in SCORINGS})
                for part in parts
            )
            for kind in kinds
        }
    return joined


def start_random_numbers(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
