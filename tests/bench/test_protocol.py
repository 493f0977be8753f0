from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from easyedit_dafnet.bench import Method, Workbench
from easyedit_dafnet.bench.own_methods import Unedited
from easyedit_dafnet.bench.protocol import Protocol
from easyedit_dafnet.bench.scoring import Scorer
from easyedit_dafnet.bench.unedited_model import UneditedModel
from tests.bench.conftest import RECORDS

PASSAGES = ["London Berlin Madrid", "The capital of France is not Rome"]


class Watched(Method):
    """Notes how many texts its model is given at once."""

    name = "watched"
    sizes: ClassVar[list[int]] = []

    def start(self, model: Any) -> None:
        super().start(model)
        embedding: nn.Module = model.get_input_embeddings()
        embedding.register_forward_pre_hook(lambda _, args: self.sizes.append(len(args[0])))

    def edit(self, requests: Any) -> None:
        pass


class Alone(Watched):
    one_by_one = True


@pytest.mark.parametrize(("kind", "alone"), [(Watched, False), (Alone, True)])
def test_a_method_is_asked_one_by_one_also_for_perplexity(
    kind: type[Watched],
    alone: bool,
    workbench: Callable[[Path], Workbench],
    tmp_path: Path,
) -> None:
    bench = workbench(tmp_path)
    unedited_model = UneditedModel(bench.load_model)
    scorer = Scorer(bench.tok)
    unedited = scorer.unedited(unedited_model.put_back(), RECORDS)
    before = {"perplexity": 1.0, "tokens": 1}
    protocol = Protocol(
        kind(bench, {}), unedited_model, scorer, PASSAGES, before, (), 0, "cpu", 0, lambda *_: None
    )
    kind.sizes.clear()
    protocol.run(RECORDS, unedited, single=False, batch_size=1)
    assert (max(kind.sizes) == 1) is alone


class Growing(Unedited):
    """Keeps 100 bytes, and 7 for each edit."""

    def start(self, model: Any) -> None:
        super().start(model)
        self.held = 0

    def edit(self, requests: Any) -> None:
        self.held = max(self.held, 100) + 7 * len(requests)

    def state_bytes(self) -> int:
        return self.held


@pytest.mark.parametrize(
    ("single", "batch_size", "total", "growth"),
    [(False, 1, 128, 7.0), (False, 3, 128, 7.0), (False, 4, 128, None), (True, 1, 107, None)],
)
def test_what_an_edit_adds_to_the_state_is_told_from_the_constant_part(
    single: bool,
    batch_size: int,
    total: int,
    growth: float | None,
    workbench: Callable[[Path], Workbench],
    tmp_path: Path,
) -> None:
    bench = workbench(tmp_path)
    unedited_model = UneditedModel(bench.load_model)
    scorer = Scorer(bench.tok)
    records = RECORDS[:4]
    unedited = scorer.unedited(unedited_model.put_back(), records)
    protocol = Protocol(
        Growing(bench, {}), unedited_model, scorer, (), None, (), 0, "cpu", 0, lambda *_: None
    )
    found, _ = protocol.run(records, unedited, single, batch_size)
    assert (found["state_bytes"], found["state_bytes_per_edit"]) == (total, growth)


class Dice(Unedited):
    """Notes the random numbers that each stream begins with."""

    thrown: ClassVar[list[float]] = []

    def start(self, model: Any) -> None:
        super().start(model)
        self.thrown.append(torch.rand(1).item())


def test_each_stream_begins_with_random_numbers_of_its_own(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    bench = workbench(tmp_path)
    unedited_model = UneditedModel(bench.load_model)
    scorer = Scorer(bench.tok)
    unedited = scorer.unedited(unedited_model.put_back(), RECORDS)
    thrown = []
    for seed in (3, 3, 100):
        Dice.thrown.clear()
        method = Dice(bench, {})
        protocol = Protocol(
            method, unedited_model, scorer, (), None, (), 0, "cpu", seed, lambda *_: None
        )
        protocol.run(RECORDS[:2], unedited, single=True, batch_size=1)
        thrown.append(list(Dice.thrown))
    first, again, other = thrown
    assert first == again and first != other and first[0] != first[1]
