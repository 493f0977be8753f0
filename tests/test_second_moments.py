from __future__ import annotations

from typing import Any

import pytest
import torch

from easyedit_dafnet.second_moments import pieces_of, sums_of_inputs
from tests.conftest import Subject
from tests.tiny import ARCHITECTURES, TEXT, architecture


def test_sums_are_those_of_all_tokens_whatever_the_batches(subject: Subject) -> None:
    model: Any = subject.model()
    pieces = pieces_of(subject.tok, TEXT, 60)
    assert sum(map(len, pieces)) == 60
    name = subject.modules[-1]
    found = sums_of_inputs(model, [name], pieces, torch.float64)[name]
    inputs: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
    with torch.no_grad():
        for piece in pieces:
            model(piece[None])
    x = torch.cat(inputs).double()
    # float32 passes with and without padding
    torch.testing.assert_close(found, x.T @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_sums_of_other_architectures_count_the_tokens_alone(name: str) -> None:
    model, module = architecture(name, "eager")
    pieces = [torch.arange(3, 3 + length) for length in (7, 4)]
    together = sums_of_inputs(model, [module], pieces)[module]
    apart = sum(sums_of_inputs(model, [module], [piece])[module] for piece in pieces)
    # float32 passes with and without padding
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-4)


def test_pieces_are_no_longer_than_the_models_context(subject: Subject) -> None:
    text = [" ".join(TEXT)] * 3
    pieces = pieces_of(subject.tok, text, 200, context=16)
    assert max(map(len, pieces)) == 16 and sum(map(len, pieces)) == 200
