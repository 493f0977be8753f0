from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call

from easyedit_dafnet import edited_weights
from easyedit_dafnet.dafnet import Update
from easyedit_dafnet.edited_weights import EditedWeights, factors_are_cheaper
from tests.conftest import Subject


def multiplications(form: str, edit: int, text: int, d_in: int, d_out: int) -> int:
    """Counted product by product."""
    if form == "factors":
        forward = text * d_in * edit + text * edit * d_out
        to_the_text = text * edit * d_in + text * d_out * edit
        to_the_factors = edit * text * d_in + edit * text * d_out
        return forward + to_the_text + to_the_factors
    change = d_in * edit * d_out
    gradient_of_the_weight = d_in * text * d_out
    to_the_factors = edit * d_in * d_out + edit * d_out * d_in
    return change + gradient_of_the_weight + to_the_factors


@pytest.mark.parametrize("edit", [1, 8, 80, 800, 8000])
@pytest.mark.parametrize("text", [50, 500, 5000])
def test_the_cheaper_form_has_fewer_multiplications(edit: int, text: int) -> None:
    for d_in, d_out in ((576, 1536), (11008, 4096)):
        counted = {f: multiplications(f, edit, text, d_in, d_out) for f in ("factors", "dense")}
        expected = counted["factors"] < counted["dense"]
        assert factors_are_cheaper(edit, text, d_in, d_out) == expected
    assert factors_are_cheaper(8, 100, 576, 1536) and not factors_are_cheaper(800, 5000, 576, 1536)


@pytest.mark.parametrize("factors", [True, False])
def test_both_forms_edit_alike_and_send_the_gradient_back(
    subject: Subject, factors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edited_weights, "factors_are_cheaper", lambda *_: factors)
    model: Any = subject.model().requires_grad_(False)
    torch.manual_seed(0)
    source = [
        (torch.randn(5, m.d_in, requires_grad=True), torch.randn(5, m.d_out, requires_grad=True))
        for m in subject.edited
    ]
    updates = [
        Update(0.3 * x, 0.3 * delta, torch.tensor(0.0), subject.edit_bias) for x, delta in source
    ]
    ids = torch.arange(1, 12)[None]

    plain: dict[str, torch.Tensor] = {}
    for module, update in zip(subject.edited, updates, strict=True):
        for name, step in update.steps(module).items():
            plain[name] = model.get_parameter(name) + step
    expected = functional_call(model, plain, (ids,)).logits
    tensors = [t for pair in source for t in pair]
    wanted = torch.autograd.grad(expected.square().sum(), tensors, retain_graph=True)

    edited = EditedWeights(model, subject.edited, updates, [11] * len(updates))
    with edited.applied() as parameters:
        assert bool(parameters) != factors
        for _ in range(2):  # two passes, whose gradients add up
            found = functional_call(model, parameters, (ids,)).logits
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            (found.square().sum() / 2).backward()
    assert all(t.grad is None for t in tensors), "nothing has passed the networks yet"
    edited.backward()
    for t, gradient in zip(tensors, wanted, strict=True):
        assert t.grad is not None
        assert (t.grad - gradient).norm() <= 1e-4 * gradient.norm()
    torch.testing.assert_close(model(ids).logits, subject.model()(ids).logits)


def test_an_edit_without_tokens_at_a_module_changes_nothing(subject: Subject) -> None:
    model: Any = subject.model().requires_grad_(False)
    updates = [
        Update(torch.zeros(0, m.d_in), torch.zeros(0, m.d_out), torch.tensor(1.0))
        for m in subject.edited
    ]
    ids = torch.arange(1, 12)[None]
    with EditedWeights(model, subject.edited, updates, [11] * len(updates)).applied() as parameters:
        found = functional_call(model, parameters, (ids,)).logits
    torch.testing.assert_close(found, model(ids).logits)
