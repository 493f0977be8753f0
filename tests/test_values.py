from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from easyedit_dafnet.language_model import target_logits
from easyedit_dafnet.records import IGNORE, TokenBatch, encode_requests, first_answers
from easyedit_dafnet.signals import edit_signals
from easyedit_dafnet.values import Others, _losses, improved
from tests.conftest import Subject
from tests.tiny import REQUESTS


def setting(solved: Subject, n: int = 5) -> tuple[Any, TokenBatch, list[Tensor]]:
    model = solved.model()
    batch = encode_requests(solved.tok, REQUESTS[:n], model, at_subject=True)
    # At the last token of the prompt, for the first of the target: a random model's answer hangs on
    # what is written there.
    at = batch.targets.int().argmax(1)
    first = torch.full_like(batch.labels, IGNORE).scatter(
        1, at[:, None], batch.labels.gather(1, at[:, None])
    )
    batch = replace(batch, at=at, labels=first)
    values = [torch.zeros(n, m.d_out) for m in solved.edited]
    return model, batch, values


def losses(model: Any, solved: Subject, batch: TokenBatch, values: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return _losses(model, solved.edited, batch, values, {})[0]


def test_values_come_to_say_the_target(solved: Subject) -> None:
    model, batch, values = setting(solved)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    better = improved(model, solved.edited, batch, values, {}, 20, 0.2)
    before, after = (losses(model, solved, batch, v) for v in (values, better))
    assert (after < 0.5 * before).all()
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all((v == 0).all() for v in values)  # what was given stays as it was
    assert not any(m._forward_hooks for m in model.modules())


def test_an_edit_that_is_made_moves_no_further(
    solved: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, values = setting(solved)
    before = losses(model, solved, batch, values)
    enough = before.median().item()
    monkeypatch.setattr("easyedit_dafnet.values.ENOUGH", enough)
    asked = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _, ids, __: asked.append(len(ids[0]))
    )
    better = improved(model, solved.edited, batch, values, {}, 2, 0.1)
    handle.remove()
    for now, then in zip(better, values, strict=True):
        assert ((now != then).any(1) == (before > enough)).all()
    assert asked[:2] == [5, 2]  # what is made at first takes part in no step


def test_an_edit_that_is_made_on_the_way_moves_no_further(
    solved: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, values = setting(solved)
    one = improved(model, solved.edited, batch, values, {}, 1, 0.1)
    after = losses(model, solved, batch, one)
    enough = after.median().item()
    assert (losses(model, solved, batch, values) > enough).all()  # none is made at first
    monkeypatch.setattr("easyedit_dafnet.values.ENOUGH", enough)
    two = improved(model, solved.edited, batch, values, {}, 2, 0.1)
    for a, b in zip(two, one, strict=True):
        assert ((a != b).any(1) == (after > enough)).all()


def test_what_is_not_a_number_is_not_made(solved: Subject) -> None:
    """Else an edit whose pass overflows would count as one that holds."""
    model, batch, values = setting(solved, 2)
    name = solved.edited[0].weight_name
    broken = {name: torch.full_like(model.get_parameter(name), torch.nan)}
    better = improved(model, solved.edited, batch, values, broken, 1, 0.1)
    assert not any(value.isfinite().any() for value in better)


def test_edits_that_are_all_made_take_one_look(
    solved: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, values = setting(solved)
    monkeypatch.setattr("easyedit_dafnet.values.ENOUGH", 100.0)
    asked = []
    model.get_input_embeddings().register_forward_hook(lambda *_: asked.append(1))
    kept = improved(model, solved.edited, batch, values, {}, 2, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(kept, values, strict=True))
    assert len(asked) == 1


def test_company_changes_nothing(solved: Subject) -> None:
    model, batch, values = setting(solved)
    together = improved(model, solved.edited, batch, values, {}, 3, 0.1)
    for size in (1, 2):
        apart = improved(model, solved.edited, batch, values, {}, 3, 0.1, batch_size=size)
        for a, b in zip(apart, together, strict=True):
            # Adam divides small gradients by their size: rounding shows more than elsewhere.
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_no_steps_leave_the_values(solved: Subject) -> None:
    model, batch, values = setting(solved)
    kept = improved(model, solved.edited, batch, values, {}, 0, 0.2)
    assert all(a is b for a, b in zip(kept, values, strict=True))


def test_the_unedited_weights_are_used_where_given(solved: Subject) -> None:
    model, batch, values = setting(solved, 2)
    name = solved.edited[0].weight_name
    expected = improved(model, solved.edited, batch, values, {}, 2, 0.1)
    originals = {name: model.get_parameter(name).detach().clone()}
    with torch.no_grad():
        model.get_parameter(name).mul_(2)
    found = improved(model, solved.edited, batch, values, originals, 2, 0.1)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_small_gradients_do_not_vanish_in_float16(solved: Subject) -> None:
    model, batch, values = setting(solved)
    model = model.half()
    with torch.no_grad():  # gradients come near the smallest number of float16
        model.get_output_embeddings().weight.mul_(2**-18)
    better = improved(model, solved.edited, batch, values, {}, 1, 0.1)
    assert all((value != 0).all() for value in better)


def spreads_at(model: Any, solved: Subject, batch: TokenBatch) -> list[Tensor]:
    """Of single edits whose keys S leaves as they are."""
    return [0.3 * s.x for s in edit_signals(model, solved.edited, batch)]


def with_edit(model: Any, solved: Subject, spread: list[Tensor], value: list[Tensor]) -> Any:
    """The model with the outer product of each module's spread and value in its weight."""
    with torch.no_grad():
        for module, s, v in zip(solved.edited, spread, value, strict=True):
            change = torch.outer(s, v)
            weight = model.get_parameter(module.weight_name)
            weight += change.T if module.transposed else change
    return model


def test_values_are_asked_as_they_are_written(solved: Subject) -> None:
    model, batch, values = setting(solved, 3)
    spreads = spreads_at(model, solved, batch)
    torch.manual_seed(0)
    values = [torch.randn_like(v) for v in values]
    with torch.no_grad():
        found, said, _ = _losses(model, solved.edited, batch, values, {}, spreads)
    for i in range(3):
        edited = with_edit(solved.model(), solved, [s[i] for s in spreads], [v[i] for v in values])
        logits = target_logits(edited, batch[[i]], {})
        labels = batch[[i]].labels[batch[[i]].targets]
        torch.testing.assert_close(found[i], F.cross_entropy(logits, labels))
        assert said[i] == (logits.argmax(-1) == labels).all()


def test_as_written_a_target_of_several_tokens_comes_to_be_said_by_the_edited_model(
    solved: Subject,
) -> None:
    model, request = solved.model(), {**REQUESTS[0], "target_new": "Rome, not Paris"}
    batch = encode_requests(solved.tok, [request], model, at_subject=True)
    assert batch.targets.sum() == 4
    values = [torch.zeros(1, m.d_out) for m in solved.edited]
    spreads = spreads_at(model, solved, batch)
    before = F.cross_entropy(target_logits(model, batch, {}), batch.labels[batch.targets])
    better = improved(model, solved.edited, batch, values, {}, 100, 0.1, spreads=spreads)
    edited = with_edit(model, solved, [s[0] for s in spreads], [v[0] for v in better])
    logits = target_logits(edited, batch, {})
    # Whether all is said hangs on rounding: random models have steep losses.
    assert F.cross_entropy(logits, batch.labels[batch.targets]) < before / 2


def test_as_written_what_is_said_at_first_stays(
    solved: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, values = setting(solved)
    spreads = spreads_at(model, solved, batch)
    some = improved(model, solved.edited, batch, values, {}, torch.tensor([9, 9, 0, 0, 9]), 0.3,
                    spreads=spreads)  # fmt: skip
    with torch.no_grad():
        _, said, _ = _losses(model, solved.edited, batch, some, {}, spreads)
    assert said.any() and not said.all()
    monkeypatch.setattr("easyedit_dafnet.values.ENOUGH", 0.0)
    more = improved(model, solved.edited, batch, some, {}, 1, 0.3, spreads=spreads)
    for now, then in zip(more, some, strict=True):
        assert ((now != then).any(1) == ~said).all()


def test_each_text_may_have_a_number_of_steps_of_its_own(solved: Subject) -> None:
    model, batch, values = setting(solved, 3)
    mixed = improved(model, solved.edited, batch, values, {}, torch.tensor([0, 2, 5]), 0.01)
    for i, steps in enumerate((0, 2, 5)):
        alone = improved(model, solved.edited, batch, values, {}, steps, 0.01)
        for a, b in zip(mixed, alone, strict=True):
            # Adam divides small gradients by their size: rounding shows more than elsewhere.
            torch.testing.assert_close(a[i], b[i], rtol=1e-3, atol=1e-4)


# ---- other questions about the subject -----------------------------------------------------------


def others_of(solved: Subject, model: Any, questions: list[str], weight: float = 1.0) -> Others:
    """About three subjects, whichever: a random model knows none."""
    asked = [
        [
            {"prompt": question.format(name), "subject": name, "target_new": r["target_new"]}
            for r, name in zip(REQUESTS, ("London", "Madrid", "Vienna"), strict=False)
        ]
        for question in questions
    ]
    texts = [first_answers(encode_requests(solved.tok, q, model, at_subject=True)) for q in asked]
    return Others(texts, weight)


QUESTIONS = ["The mother of {} is", "{} is as old as", "It is said that {} has"]


def beside_questions(
    solved: Subject, monkeypatch: pytest.MonkeyPatch, weight: float = 1.0
) -> tuple[Any, TokenBatch, list[Tensor], Others]:
    """Three edits without values yet, and the questions, all of which are asked."""
    # A random model answers all prompts much alike.
    monkeypatch.setattr("easyedit_dafnet.values.SAME_QUESTION", 2.0)
    model = solved.model()
    batch = encode_requests(solved.tok, REQUESTS[:3], model, at_subject=True)
    values = [torch.zeros(3, m.d_out) for m in solved.edited]
    return model, batch, values, others_of(solved, model, QUESTIONS, weight)


def divergences(
    model: Any, solved: Subject, batch: TokenBatch, values: list[Tensor], others: Others
) -> Tensor:
    with torch.no_grad():
        others = others.answered(model, batch, {})
        return _losses(model, solved.edited, batch, values, {}, others=others)[2]


def test_other_questions_about_the_subject_keep_their_answers(
    solved: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, values, others = beside_questions(solved, monkeypatch, weight=50.0)
    assert (divergences(model, solved, batch, values, others).abs() < 1e-5).all()
    monkeypatch.setattr("easyedit_dafnet.values.SETTLED", 0.0)
    alone = improved(model, solved.edited, batch, values, {}, 30, 0.1)
    beside = improved(model, solved.edited, batch, values, {}, 30, 0.1, others=others)
    moved = [divergences(model, solved, batch, v, others) for v in (alone, beside)]
    assert moved[1].mean() < 0.5 * moved[0].mean()
    before, after = (losses(model, solved, batch, v) for v in (values, beside))
    assert (after < before).all(), "while the targets still become likelier"


def test_divergence_is_of_the_answers_to_the_questions_at_the_values(
    solved: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, values, others = beside_questions(solved, monkeypatch)
    torch.manual_seed(0)
    values = [torch.randn_like(v) for v in values]
    found = divergences(model, solved, batch, values, others)
    expected = torch.zeros(3)
    for text in others.texts:
        with torch.no_grad():
            log_p = target_logits(model, text, {}).log_softmax(-1)
        for i in range(3):
            # The losses of one-token texts at the values, over the whole vocabulary.
            rows = text[[i] * len(log_p[i])]
            labels = rows.labels.masked_scatter(rows.targets, torch.arange(len(log_p[i])))
            rows = replace(rows, labels=labels)
            log_q = -losses(model, solved, rows, [v[[i] * len(log_p[i])] for v in values])
            expected[i] += (log_p[i].exp() * (log_p[i] - log_q)).sum() / len(others.texts)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_edits_own_question_is_not_asked_again(solved: Subject) -> None:
    model = solved.model()
    batch = encode_requests(solved.tok, REQUESTS[:3], model, at_subject=True)
    own = first_answers(batch)
    others = replace(others_of(solved, model, QUESTIONS[:1]), texts=[own]).answered(
        model, batch, {}
    )
    assert others.asks is not None and not others.asks.any()
    values = [torch.zeros(3, m.d_out) for m in solved.edited]
    alone = improved(model, solved.edited, batch, values, {}, 3, 0.1)
    beside = improved(model, solved.edited, batch, values, {}, 3, 0.1, others=others)
    for a, b in zip(alone, beside, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_other_questions_stay_with_their_edits_in_any_split(
    solved: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, values, others = beside_questions(solved, monkeypatch, weight=2.0)
    together = improved(model, solved.edited, batch, values, {}, 2, 0.1, others=others)
    apart = improved(model, solved.edited, batch, values, {}, 2, 0.1, batch_size=2, others=others)
    for a, b in zip(together, apart, strict=True):
        # Padding rounds differently, and Adam's first steps go by the gradient's sign.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
