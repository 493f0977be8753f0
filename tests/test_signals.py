from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from easyedit_dafnet.records import IGNORE, TokenBatch, encode_requests, encode_targets
from easyedit_dafnet.signals import concatenate, edit_signals, find_modules
from tests.conftest import Subject
from tests.tiny import ARCHITECTURES, LLAMA_MODULES, REQUESTS, architecture, tiny_llama


def batch_of(subject: Subject, requests: list[dict[str, str]]):
    return encode_targets(
        subject.tok, [r["prompt"] for r in requests], [r["target_new"] for r in requests]
    )


def test_the_factors_multiply_to_the_gradient_of_the_loss(subject: Subject) -> None:
    """sum_t x_t delta_t^T is dL/dW, with L the summed negative log likelihood of the targets."""
    model, batch = subject.model(), batch_of(subject, REQUESTS[:4])
    signals = edit_signals(model, subject.edited, batch)
    logits = model(batch.input_ids, attention_mask=batch.attention_mask).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), reduction="sum"
    )
    loss.backward()
    for module, s in zip(subject.edited, signals, strict=True):
        gradient = model.get_parameter(module.weight_name).grad
        ours = s.x.T @ s.delta
        # float32 sums in another order
        torch.testing.assert_close(
            ours.T if module.transposed else ours, gradient, rtol=1e-4, atol=1e-5
        )


def test_tokens_that_the_loss_does_not_reach_are_dropped(subject: Subject) -> None:
    batch = batch_of(subject, REQUESTS[:4])
    signals = edit_signals(subject.model(), subject.edited, batch)
    # In the last block the MLP is reached only at positions that predict a target token...
    assert signals[-1].lengths.tolist() == batch.targets.sum(1).tolist()
    # ... below it also at the prompt's tokens, but never at padding or the last token.
    assert signals[0].lengths.tolist() == (batch.attention_mask.sum(1) - 1).tolist()
    for s in signals:
        assert len(s.x) == len(s.delta) == int(s.lengths.sum())
        assert (s.x != 0).any(1).all() and (s.delta != 0).any(1).all()


def test_batch_composition_and_padding_side_change_nothing(subject: Subject) -> None:
    model = subject.model()
    subject.tok.padding_side = "left"
    together = edit_signals(model, subject.edited, batch_of(subject, REQUESTS))
    subject.tok.padding_side = "right"
    alone = [edit_signals(model, subject.edited, batch_of(subject, [r])) for r in REQUESTS]
    for m, s in enumerate(together):
        joined = concatenate([a[m] for a in alone])
        assert torch.equal(s.lengths, joined.lengths)
        torch.testing.assert_close(s.x, joined.x, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(s.delta, joined.delta, rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was(subject: Subject) -> None:
    model = subject.model().train()
    first = next(model.parameters())
    first.requires_grad_(False)
    edit_signals(model, subject.edited, batch_of(subject, REQUESTS[:1]))
    assert model.training
    assert not first.requires_grad
    assert all(p.requires_grad for p in list(model.parameters())[1:])
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_signals_of_an_edited_model_are_those_of_the_unedited(subject: Subject) -> None:
    model, batch = subject.model(), batch_of(subject, REQUESTS[:3])
    expected = edit_signals(model, subject.edited, batch)
    names = [m.weight_name for m in subject.edited]
    originals = {name: model.get_parameter(name).detach().clone() for name in names}
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).add_(0.3)
    for a, b in zip(edit_signals(model, subject.edited, batch, originals), expected, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.delta, b.delta)


def test_signals_that_are_not_finite_are_refused(subject: Subject) -> None:
    model = subject.model()
    with torch.no_grad():
        model.get_parameter(subject.edited[0].weight_name)[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="not finite"):
        edit_signals(model, subject.edited, batch_of(subject, REQUESTS[:1]))


def test_modules_that_cannot_be_edited_are_named(subject: Subject, tmp_path: Path) -> None:
    model = subject.model()
    wrong = subject.modules[0].replace("mlp", "mpl")
    with pytest.raises(ValueError, match=re.escape(f"did you mean {subject.modules[0]!r}")):
        find_modules(model, [wrong])
    with pytest.raises(ValueError, match=r"is a .*; DAFNet edits"):
        find_modules(model, [subject.modules[0].rsplit(".", 1)[0]])
    tied = AutoModelForCausalLM.from_pretrained(
        tiny_llama(tmp_path / "llama", tie_word_embeddings=True)
    )
    with pytest.raises(ValueError, match=r"shares its weight with 'model\.embed_tokens"):
        find_modules(tied, ["lm_head"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_give_the_factors_of_the_gradient(name: str) -> None:
    model, module_name = architecture(name, "eager")
    (module,) = find_modules(model, [module_name])
    ids = torch.arange(1, 25).view(2, 12)
    labels = torch.full_like(ids, IGNORE)
    labels[0, 5:7], labels[1, 8] = ids[0, 6:8], ids[1, 9]
    batch = TokenBatch(ids, torch.ones_like(ids), labels)
    (signals,) = edit_signals(model, [module], batch)
    weight = model.get_parameter(module.weight_name).requires_grad_()
    logits = model(ids).logits.flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, weight)
    found = signals.x.T @ signals.delta
    found = found.T if module.transposed else found
    assert (found - gradient).norm() <= 1e-4 * gradient.norm()
    assert signals.lengths.tolist() == [7, 9]


def test_the_output_embeddings_are_not_edited(subjects: Callable[[str], Subject]) -> None:
    with pytest.raises(ValueError, match="'lm_head' are the output embeddings"):
        find_modules(subjects("llama").model(), ["lm_head"])


def test_few_targets_in_a_large_vocabulary_are_not_rounded_away(tmp_path: Path) -> None:
    """float32 products of one row with 50,000 others are summed poorly on some CPUs.

    As in trained models, the output embeddings have much in common, which cancels in the sum.
    """
    folder = tiny_llama(tmp_path / "llama", vocab_size=50_000, hidden_size=64)
    signals = {}
    for dtype in (torch.float32, torch.float64):
        model: Any = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype)
        with torch.no_grad():
            model.lm_head.weight.add_(3)
        ids = torch.arange(1, 9)[None]
        labels = torch.full_like(ids, IGNORE)
        labels[0, 6] = 40_000
        batch = TokenBatch(ids, torch.ones_like(ids), labels)
        (signals[dtype],) = edit_signals(model, find_modules(model, LLAMA_MODULES[-1:]), batch)
    exact = signals[torch.float64].delta
    assert (signals[torch.float32].delta - exact).norm() <= 2e-5 * exact.norm()


def test_signals_of_one_token_and_of_the_answer(solved: Subject) -> None:
    """x and delta at the subject's last token, and dL/dh at what the output embeddings see."""
    model = solved.model()
    batch = encode_requests(solved.tok, REQUESTS[:4], model, at_subject=True)
    everywhere = edit_signals(model, solved.edited, replace(batch, at=None))
    signals = edit_signals(model, solved.edited, batch, batch_size=3)
    assert batch.at is not None
    seen: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = model(batch.input_ids, attention_mask=batch.attention_mask).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), reduction="sum"
    )
    answer = torch.autograd.grad(loss, seen[0])[0].sum(1)
    for one, all_ in zip(signals, everywhere, strict=True):
        assert one.lengths.tolist() == [1] * 4
        starts = all_.lengths.cumsum(0) - all_.lengths
        torch.testing.assert_close(one.x, all_.x[starts + batch.at], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.delta, all_.delta[starts + batch.at], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.answer, answer, rtol=1e-4, atol=1e-5)
        joined = concatenate(one.split())
        assert joined.answer is not None and one.answer is not None
        assert torch.equal(joined.answer, one.answer)
