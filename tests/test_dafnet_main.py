from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from easyedit_dafnet import apply_dafnet_to_model, dafnet_main
from easyedit_dafnet.checkpoint import load_dafnet, save_dafnet
from easyedit_dafnet.dafnet_hparams import DAFNetHyperParams, SettingsError
from easyedit_dafnet.dafnet_main import STATE, moved, start_sequence
from easyedit_dafnet.edit_requests import RequestError
from easyedit_dafnet.language_model import target_logits
from easyedit_dafnet.records import encode_requests
from tests.conftest import Subject
from tests.tiny import REQUESTS


def edit(subject: Subject, model: Any, requests: list[dict[str, str]], **kwargs: Any) -> Any:
    return apply_dafnet_to_model(model, subject.tok, requests, subject.hparams(), **kwargs)


def changes(model: Any, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    now = model.state_dict()
    return {k: now[k] - v for k, v in before.items() if not torch.equal(now[k], v)}


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Equal up to float32 sums in another order, measured against the size of the change."""
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).norm() <= 1e-5 * b[name].norm(), name


def restore(model: Any, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in weights.items():
            model.get_parameter(name)[...] = value


def test_only_the_edited_modules_change_and_come_back_bit_exactly(subject: Subject) -> None:
    model = subject.model()
    before = snapshot(model)
    edited, weights = edit(subject, model, REQUESTS[:2], return_orig_weights=True)
    assert edited is model
    parts = ("weight", "bias") if subject.edit_bias else ("weight",)
    names = {f"{name}.{part}" for name in subject.modules for part in parts}
    assert set(changes(model, before)) == set(weights) == names
    restore(model, weights)
    assert not changes(model, before)


@pytest.mark.parametrize("split", [[7], [1] * 7, [3, 4], [2, 4, 1]])
def test_any_split_of_a_sequence_gives_the_same_change(subject: Subject, split: list[int]) -> None:
    whole, parts = subject.model(), subject.model()
    before = snapshot(whole)
    edit(subject, whole, REQUESTS)
    start = 0
    for size in split:
        edit(subject, parts, REQUESTS[start : start + size])
        start += size
    assert_same(changes(parts, before), changes(whole, before))


def test_many_requests_at_once_are_worked_off_in_groups(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, grouped = subject.model(), subject.model()
    before = snapshot(whole)
    edit(subject, whole, REQUESTS)
    monkeypatch.setattr("easyedit_dafnet.dafnet_main.REQUESTS_AT_ONCE", 2)
    edit(subject, grouped, REQUESTS)
    assert_same(changes(grouped, before), changes(whole, before))


MANY = [
    {"prompt": f"{r['prompt']} {name}", "target_new": r["target_new"]}
    for name in ("London", "Oslo", "Berlin")
    for r in REQUESTS
][:20]


def test_twenty_edits_one_by_one_are_one_batch(subject: Subject) -> None:
    whole, single = subject.model(), subject.model()
    before = snapshot(whole)
    edit(subject, whole, MANY)
    for request in MANY:  # the buffers grow several times
        edit(subject, single, [request])
    assert_same(changes(single, before), changes(whole, before))
    one, two = getattr(single, STATE), getattr(whole, STATE)
    assert one.count == two.count == 20
    for shape in one.held.past:
        for a, b in zip(one.held.past[shape], two.held.past[shape], strict=True):
            torch.testing.assert_close(a.values.filled, b.values.filled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_what_is_kept_may_be_of_lower_precision(
    subject: Subject, dtype: str, tolerance: float
) -> None:
    exact, single, whole = subject.model(), subject.model(), subject.model()
    before = snapshot(exact)
    edit(subject, exact, MANY)
    hparams = subject.hparams(past_dtype=dtype)
    for request in MANY:
        apply_dafnet_to_model(single, subject.tok, [request], hparams)
    apply_dafnet_to_model(whole, subject.tok, MANY, hparams)
    wanted, found, split = (changes(model, before) for model in (exact, whole, single))
    for name in wanted:
        size = wanted[name].norm()
        assert 0 < (found[name] - wanted[name]).norm() <= tolerance * size, name
        # A projection that rounds the other way is all that a split may bring.
        assert (split[name] - found[name]).norm() <= tolerance * size, name
    full, half = getattr(exact, STATE), getattr(single, STATE)
    assert full.bytes_per_edit == 2 * half.bytes_per_edit
    # A sequence goes on as it began.
    edit(subject, single, REQUESTS[:1])
    assert getattr(single, STATE).bytes_per_edit == half.bytes_per_edit


def test_memory_is_told(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    model = subject.model()
    with caplog.at_level(logging.DEBUG, "easyedit_dafnet"):
        edit(subject, model, REQUESTS[:3])
    sequence = getattr(model, STATE)
    # Keys and values of 2 heads of 16, score keys of 2 heads of 8, float32, in 2 layers.
    assert sequence.bytes_per_edit == len(subject.modules) * 2 * (2 * 16 * 2 + 2 * 8) * 4
    edited = [model.get_parameter(name) for name in sequence.originals]
    assert sequence.constant_bytes == 2 * 4 * sum(p.numel() for p in edited)
    assert "3 edits held" in caplog.text


def test_the_tokenizers_padding_side_and_pad_token_change_nothing(subject: Subject) -> None:
    left, right = subject.model(), subject.model()
    before = snapshot(left)
    tok = deepcopy(subject.tok)
    tok.padding_side = "left"
    apply_dafnet_to_model(left, tok, REQUESTS[:4], subject.hparams())
    tok.padding_side, tok.pad_token = "right", None
    apply_dafnet_to_model(right, tok, REQUESTS[:4], subject.hparams())
    assert_same(changes(left, before), changes(right, before))


def test_a_sequence_starts_afresh_once_the_weights_are_back(subject: Subject) -> None:
    model, fresh = subject.model(), subject.model()
    before = snapshot(model)
    for request in REQUESTS[:3]:
        _, weights = edit(subject, model, [request], return_orig_weights=True)
    restore(model, weights)
    edit(subject, model, REQUESTS[3:5])
    edit(subject, fresh, REQUESTS[3:5])
    assert_same(changes(model, before), changes(fresh, before))


@pytest.mark.parametrize("asked", [(False, False), (True, False), (True, True), (False, True)])
def test_asking_for_the_weights_does_not_reset_a_sequence(
    subject: Subject, asked: tuple[bool, bool]
) -> None:
    model, plain = subject.model(), subject.model()
    before = snapshot(model)
    for request in REQUESTS[:3]:
        edit(subject, model, [request], return_orig_weights=asked[0], keep_original_weight=asked[1])
    edit(subject, plain, REQUESTS[:3])
    assert_same(changes(model, before), changes(plain, before))


def test_two_models_do_not_meet(subject: Subject) -> None:
    one, two, alone = subject.model(), subject.model(), subject.model()
    before = snapshot(one)
    for first, second in zip(REQUESTS[:3], REQUESTS[3:6], strict=True):
        edit(subject, one, [first])
        edit(subject, two, [second])
    edit(subject, alone, REQUESTS[:3])
    assert_same(changes(one, before), changes(alone, before))


def test_a_copy_leaves_the_model_alone_and_goes_on_from_it(subject: Subject) -> None:
    model, whole = subject.model(), subject.model()
    before = snapshot(model)
    edit(subject, model, REQUESTS[:2])
    held = snapshot(model)
    copied, _ = edit(subject, model, REQUESTS[2:4], copy=True)
    assert copied is not model
    assert not changes(model, held)
    edit(subject, whole, REQUESTS[:4])
    assert_same(changes(copied, before), changes(whole, before))
    edit(subject, model, REQUESTS[4:5])
    assert getattr(model, STATE).count == 3
    edit(subject, whole, REQUESTS[5:7])
    edit(subject, copied, REQUESTS[5:7])  # what the model went on with is not in its copy
    assert_same(changes(copied, before), changes(whole, before))


def test_the_edit_is_in_the_models_own_parameters(subject: Subject, tmp_path: Path) -> None:
    model = subject.model()
    edit(subject, model, REQUESTS[:2])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.save_pretrained(tmp_path / subject.folder.name)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / subject.folder.name).eval()
    ids = subject.tok(REQUESTS[0]["prompt"], return_tensors="pt")["input_ids"]
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_bfloat16_models_are_edited_and_restored(subject: Subject) -> None:
    model = subject.model().bfloat16()
    before = snapshot(model)
    for request in REQUESTS[:3]:
        _, weights = edit(subject, model, [request], return_orig_weights=True)
    assert getattr(model, STATE).count == 3
    assert changes(model, before)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    restore(model, weights)
    assert not changes(model, before)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"target_new": "Rome"}, "Request 1: 'prompt' is missing"),
        ({"prompt": "  ", "target_new": "Rome"}, "Request 1: 'prompt' is '  '"),
        ({"prompt": "The capital is"}, "Request 1: 'target_new' is missing"),
        ({"prompt": "The capital is", "target_new": ""}, "Request 1: 'target_new' is ''"),
        ({"prompt": "France " * 80, "target_new": "Rome"}, "Request 1: .* context holds 64"),
    ],
)
def test_a_bad_request_is_named_and_changes_nothing(
    subject: Subject, request_: dict[str, str], message: str
) -> None:
    model = subject.model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        edit(subject, model, [REQUESTS[0], request_])
    assert not changes(model, before)


def test_an_update_that_is_not_finite_changes_nothing(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_sizes = load_dafnet(subject.archive).step_sizes
    model, fresh = subject.model(), subject.model()
    edit(subject, model, REQUESTS[:1])
    held, before = snapshot(model), snapshot(fresh)
    with monkeypatch.context() as patch, pytest.raises(FloatingPointError, match="left as it was"):
        patch.setattr(step_sizes, "data", step_sizes.data * torch.inf)
        edit(subject, fresh, REQUESTS[:1])
    assert not changes(fresh, before)
    assert not hasattr(fresh, STATE)
    # The same in the midst of a sequence: it stays, and goes on as if nothing had been.
    sequence, whole = getattr(model, STATE), subject.model()
    good = {k: v.clone() for k, v in sequence.held.changes.items()}
    with monkeypatch.context() as patch, pytest.raises(FloatingPointError, match="left as it was"):
        patch.setattr(step_sizes, "data", step_sizes.data * torch.nan)
        edit(subject, model, REQUESTS[1:3])
    assert not changes(model, held) and sequence.count == 1
    assert all(torch.equal(sequence.held.changes[name], good[name]) for name in good)
    edit(subject, model, REQUESTS[3:5])
    edit(subject, whole, [REQUESTS[0], *REQUESTS[3:5]])
    assert_same(changes(model, before), changes(whole, before))
    held, count = snapshot(model), sequence.count
    # Another archive on a model that holds edits is refused.
    other = subject.hparams(archive=str(shutil.copytree(subject.archive, tmp_path / "other")))
    with pytest.raises(ValueError, match="holds 3 edits made with archive"):
        apply_dafnet_to_model(model, subject.tok, REQUESTS[:1], other)
    assert not changes(model, held) and getattr(model, STATE).count == count


def test_weights_changed_by_others_are_the_new_unedited_ones(
    subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    model = subject.model()
    edit(subject, model, REQUESTS[:1])
    with torch.no_grad():
        model.get_parameter(subject.edited[0].weight_name).add_(0.01)
    held = snapshot(model)
    with caplog.at_level(logging.WARNING):
        _, weights = edit(subject, model, REQUESTS[1:2], return_orig_weights=True)
    assert "changed by something else" in caplog.text
    restore(model, weights)
    assert not changes(model, held)


def test_settings_that_do_not_fit_are_refused_in_one_sentence(
    subjects: Callable[[str], Subject],
) -> None:
    llama, gpt2 = subjects("llama"), subjects("gpt2")
    with pytest.raises(SettingsError, match="'archive' is not given"):
        apply_dafnet_to_model(llama.model(), llama.tok, REQUESTS[:1], llama.hparams(archive=None))
    with pytest.raises(ValueError, match="the model has no module"):
        apply_dafnet_to_model(gpt2.model(), gpt2.tok, REQUESTS[:1], llama.hparams())


# ---- fusion by least squares --------------------------------------------------------------------


@pytest.mark.parametrize("split", [[1] * 7, [3, 4], [2, 4, 1]])
@pytest.mark.parametrize(
    ("decay", "rehearsed", "contexts", "others"),
    [
        (0.0, 0, [], 0),
        (0.5, 0, [], 0),
        (0.5, 2, [], 0),
        (0.5, 2, ["It was late.", "So it goes."], 0),
        (0.5, 0, [], 2),
        (0.5, 2, ["It was late."], 2),
    ],
)
def test_any_split_of_a_solved_sequence_gives_the_same_change(
    solved: Subject,
    monkeypatch: pytest.MonkeyPatch,
    split: list[int],
    decay: float,
    rehearsed: int,
    contexts: list[str],
    others: int,
) -> None:
    # A random model answers all prompts much alike.
    monkeypatch.setattr("easyedit_dafnet.values.SAME_QUESTION", 2.0)
    whole, parts = solved.model(), solved.model()
    before = snapshot(whole)
    hparams = solved.hparams(
        margin=3.0, margin_decay=decay, protection=4.0,
        rehearsed=rehearsed, rehearsal_contexts=contexts,
        other_questions=QUESTIONS, others_asked=others,
    )  # fmt: skip
    requests = [*REQUESTS[:-1], {**REQUESTS[1], "target_new": "Oslo"}]  # one is edited again
    apply_dafnet_to_model(whole, solved.tok, requests, hparams)
    start = 0
    for size in split:
        part = requests[start : start + size]
        apply_dafnet_to_model(parts, solved.tok, part, hparams)
        start += size
    one, two = changes(parts, before), changes(whole, before)
    assert set(one) == set(two) == {f"{name}.weight" for name in solved.modules}
    for name in one:
        # Adam divides small gradients by their size, so rounding shows more than elsewhere.
        assert (one[name] - two[name]).norm() <= 1e-3 * two[name].norm(), name


def test_a_fact_edited_again_leaves_others_of_its_subject_alone(solved: Subject) -> None:
    """The former value gives way, and what another prompt about the subject put there stays."""
    about = {"subject": "France"}
    one = {"prompt": "The capital of France is", "target_new": "Rome", **about}
    other = {"prompt": "The capital of France, they say, is", "target_new": "Oslo", **about}
    new = {**one, "target_new": "Lyon"}
    kept, again = (solved.model() for _ in range(2))
    before = snapshot(kept)
    edit(solved, kept, [other, new])
    edit(solved, again, [one, other, new])
    a, b = changes(again, before), changes(kept, before)
    for name in a:
        # Which came first is forgotten but for the share of its value that a later one gets.
        assert (a[name] - b[name]).norm() <= 0.1 * b[name].norm(), name


def test_a_weight_is_the_sum_that_any_device_gives(solved: Subject) -> None:
    """By which a sequence is known again in a model that was moved."""
    model = solved.model()
    apply_dafnet_to_model(model, solved.tok, REQUESTS[:3], solved.hparams(margin=3.3))
    sequence = getattr(model, STATE)
    assert sequence.held.written.margin == pytest.approx(3.3)
    for name, change in sequence.held.changes.items():
        product = change.numpy() * np.float32(sequence.held.written.margin)
        expected = sequence.originals[name].numpy() + product
        assert np.array_equal(model.get_parameter(name).detach().numpy(), expected), name


def test_a_model_that_was_cast_is_edited_on(solved: Subject) -> None:
    model = solved.model()
    apply_dafnet_to_model(model, solved.tok, REQUESTS[:2], solved.hparams(margin=3.0))
    model.bfloat16()
    apply_dafnet_to_model(model, solved.tok, REQUESTS[2:4], solved.hparams(margin=3.0))
    sequence = getattr(model, STATE)
    assert sequence.count == 4 and sequence.is_held_by(model)


def test_what_is_held_moves_as_a_whole(solved: Subject) -> None:
    model = solved.model()
    hparams = solved.hparams(rehearsed=2, rehearsal_contexts=["It was late."])
    about = [{**REQUESTS[0], "prompt": f"{REQUESTS[0]['prompt']}, they say,"}]  # another at its key
    apply_dafnet_to_model(model, solved.tok, [*REQUESTS[:3], *about], hparams)
    held = getattr(model, STATE).held
    elsewhere, back = moved(held, torch.device("meta")), moved(held, torch.device("cpu"))

    def tensors(of: Any) -> list[Tensor]:
        found: list[Tensor] = []
        stack = [of]
        while stack:
            part = stack.pop()
            if isinstance(part, Tensor):
                found.append(part)
            elif isinstance(part, dict):
                stack += part.values()
            elif isinstance(part, list | tuple):
                stack += part
            elif is_dataclass(part):
                stack += vars(part).values()
        return found

    assert len(tensors(held)) == len(tensors(elsewhere)) > 10
    assert all(t.is_meta for t in tensors(elsewhere))
    assert type(elsewhere) is type(held) and elsewhere.rehearsal.edits == held.rehearsal.edits
    for a, b in zip(tensors(back), tensors(held), strict=True):
        # Room for further edits is uninitialised, so there may be a nan in it.
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_an_interrupt_between_two_weights_leaves_the_model_as_it_was(
    solved: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = solved.model()
    edit(solved, model, REQUESTS[:1])
    before, sequence = snapshot(model), getattr(model, STATE)
    write, calls = dafnet_main.write_weights, []

    def interrupted(model: Any, values: dict[str, Tensor]) -> None:
        calls.append(len(values))
        if len(calls) == 1:
            write(model, dict([*values.items()][:1]))
            raise KeyboardInterrupt
        write(model, values)

    monkeypatch.setattr(dafnet_main, "write_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        edit(solved, model, REQUESTS[1:2])
    assert not changes(model, before) and sequence.count == 1
    edit(solved, model, REQUESTS[1:2])
    whole = solved.model()
    edit(solved, whole, REQUESTS[:1])
    edit(solved, whole, REQUESTS[1:2])
    assert_same(changes(model, before), changes(whole, before))


def test_an_archive_that_was_trained_anew_does_not_go_on_with_its_edits(
    solved: Subject, tmp_path: Path
) -> None:
    archive = shutil.copytree(solved.archive, tmp_path / "net")
    hparams = solved.hparams(archive=str(archive))
    model = solved.model()
    apply_dafnet_to_model(model, solved.tok, REQUESTS[:1], hparams)
    anew = deepcopy(load_dafnet(archive))
    anew.step_sizes.mul_(2)
    save_dafnet(anew, archive, anew.base_model)
    before = snapshot(model)
    with pytest.raises(ValueError, match="which was replaced since; restore its weights"):
        apply_dafnet_to_model(model, solved.tok, REQUESTS[1:2], hparams)
    assert not changes(model, before)


def test_a_subject_in_the_first_token_is_warned_of(
    solved: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    adds_a_token = len(solved.tok("France")["input_ids"]) > len(solved.tok.tokenize("France"))
    request = {"prompt": "France lies in", "target_new": "Rome", "subject": "France"}
    with caplog.at_level(logging.WARNING):
        edit(solved, solved.model(), [request])
        told = "'France lies in', have their subject in the first token" in caplog.text
    assert told is (len(solved.tok.tokenize("France")) == 1 and not adds_a_token)


def test_a_solved_sequence_comes_back_bit_exactly(solved: Subject) -> None:
    model = solved.model()
    before = snapshot(model)
    _, weights = edit(solved, model, REQUESTS[:3], return_orig_weights=True)
    assert changes(model, before)
    restore(model, weights)
    assert not changes(model, before)
    _, _ = edit(solved, model, REQUESTS[:2])
    fresh = solved.model()
    edit(solved, fresh, REQUESTS[:2])
    assert_same(changes(model, before), changes(fresh, before))


def test_the_margin_makes_a_change_larger(solved: Subject) -> None:
    one, three = solved.model(), solved.model()
    before = snapshot(one)
    apply_dafnet_to_model(one, solved.tok, REQUESTS[:4], solved.hparams())
    louder = solved.hparams(margin=6.0, margin_facts=4.0, margin_decay=1.0)
    apply_dafnet_to_model(three, solved.tok, REQUESTS[:4], louder)
    single, triple = changes(one, before), changes(three, before)
    for name, change in single.items():
        # The weights round what is added to them.
        torch.testing.assert_close(triple[name], 3 * change, rtol=1e-3, atol=1e-6)


def test_rehearsed_edits_hold_better(solved: Subject) -> None:
    """Keys of a tiny model are much alike, so edits disturb each other from the first ones on."""
    batch = encode_requests(solved.tok, REQUESTS, solved.model(), at_subject=True)
    lost = {}
    for rehearsed, steps in ((0, 1), (2, 1), (6, 1), (6, 3)):
        model = solved.model()
        hparams = solved.hparams(
            margin=2.0, rehearsed=rehearsed, rehearsal_steps=steps, rehearsal_rate=0.1
        )
        edit_one_by_one(model, solved, hparams)
        with torch.no_grad():
            logits = target_logits(model, batch, {})
        lost[rehearsed, steps] = F.cross_entropy(logits, batch.labels[batch.targets]).item()
    assert lost[6, 3] < lost[6, 1] < lost[2, 1] < lost[0, 1]


SEVERAL = {**REQUESTS[0], "target_new": "Rome, not Paris"}  # tokens


def says(model: Any, solved: Subject, request: dict[str, str]) -> bool:
    batch = encode_requests(solved.tok, [request], model, at_subject=True)
    with torch.no_grad():
        best = target_logits(model, batch, {}).argmax(-1)
    return torch.equal(best, batch.labels[batch.targets])


def test_a_target_of_several_tokens_is_said(solved: Subject) -> None:
    model = solved.model()
    settings = {"margin": 3.0, "rehearsed": 2, "rehearsal_steps": 30}
    assert not says(model, solved, SEVERAL)
    apply_dafnet_to_model(model, solved.tok, [SEVERAL], solved.hparams(**settings))
    assert says(model, solved, SEVERAL)


def test_of_targets_of_several_tokens_those_that_are_said_move_no_further(
    solved: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do those of one token, said or not."""
    settings = {"rehearsed": 2, "rehearsal_steps": 2, "rehearsal_rate": 0.1}

    def edited(request: dict[str, str], asked: bool) -> Any:
        model = solved.model()
        with monkeypatch.context() as patch:
            if not asked:
                patch.setattr(
                    "easyedit_dafnet.rehearsal.Rehearsal.steps_for",
                    lambda self, texts, as_written: torch.tensor(self.steps * (not as_written)),
                )
            apply_dafnet_to_model(model, solved.tok, [request], solved.hparams(**settings))
        return model

    for request in [*REQUESTS, SEVERAL]:
        before = edited(request, asked=False)
        batch = encode_requests(solved.tok, [request], before, at_subject=True)
        moved = int(batch.targets.sum()) > 1 and not says(before, solved, request)
        assert bool(changes(edited(request, asked=True), snapshot(before))) == moved
    assert moved  # the last one


def test_edits_are_asked_again_after_the_contexts(solved: Subject) -> None:
    alone, after = solved.model(), solved.model()
    before, contexts = snapshot(alone), ["It was late.", "So it goes."]
    edit_one_by_one(alone, solved, solved.hparams(rehearsed=3))
    edit_one_by_one(after, solved, solved.hparams(rehearsed=3, rehearsal_contexts=contexts))
    assert changes(alone, before)
    assert changes(after, snapshot(alone))
    for kept in getattr(after, STATE).held.rehearsal.edits.values():
        prompts = [solved.tok.decode(form.ids[: form.at + 1]) for form in kept.forms]
        assert prompts == [prompts[0], *(f"{context} {prompts[0]}" for context in contexts)]
    # What is kept of an edit does not grow with the contexts, but for its tokens.
    sizes = [getattr(model, STATE).held.rehearsal.bytes_per_edit for model in (alone, after)]
    assert sizes[0] == sizes[1]


QUESTIONS = ["The mother of {} is", "{} is as old as", "It is said that {} has"]


def test_other_questions_are_about_each_requests_subject(solved: Subject) -> None:
    model = solved.model()
    hparams = solved.hparams(
        rehearsed=1, rehearsal_contexts=["It was late."],
        other_questions=QUESTIONS, others_asked=2,
    )  # fmt: skip
    requests = [REQUESTS[0], {**REQUESTS[4], "subject": "Italy", "target_new": "is a town"}]
    sequence = start_sequence(model, hparams)
    _, _, *asked = sequence.encode(solved.tok, requests, model)
    texts = [
        [
            solved.tok.decode(ids[mask.bool()])
            for ids, mask in zip(b.input_ids, b.attention_mask, strict=True)
        ]
        for b in asked
    ]
    for i, subject in enumerate(("France", "Italy")):
        mine = {text[i] for text in texts}
        assert len(mine) == 2 and mine < {question.format(subject) for question in QUESTIONS}
        for batch, text in zip(asked, texts, strict=True):
            assert batch.at is not None
            until = solved.tok.decode(batch.input_ids[i, : batch.at[i] + 1])
            assert until == text[i][: text[i].index(subject) + len(subject)]
            assert (batch.labels[i] >= 0).sum() == 1, "of a target its first token alone"


def test_other_questions_are_asked_while_a_value_is_found_and_not_again(
    solved: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random model answers all prompts much alike.
    monkeypatch.setattr("easyedit_dafnet.values.SAME_QUESTION", 2.0)
    found = []
    for others in (0, 2):
        model = solved.model()
        before = snapshot(model)
        hparams = solved.hparams(
            rehearsed=1, other_questions=QUESTIONS, others_asked=others, others_weight=50.0
        )
        apply_dafnet_to_model(model, solved.tok, REQUESTS[:3], hparams)
        found.append(changes(model, before))
        kept = getattr(model, STATE).held.rehearsal.edits.values()
        texts = [solved.tok.decode(form.ids) for edit in kept for form in edit.forms]
        assert sorted(texts) == sorted(
            f"{request['prompt']} {request['target_new']}" for request in REQUESTS[:3]
        )
    alone, beside = found
    for name in alone:
        # Far above what rounding makes of Adam's steps.
        assert (alone[name] - beside[name]).norm() > 0.02 * alone[name].norm(), name


def test_other_questions_are_asked_in_chat_form_of_a_chat(solved: Subject) -> None:
    tok = deepcopy(solved.tok)
    tok.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    hparams = solved.hparams(
        other_questions=QUESTIONS, others_asked=3, use_chat_template=True
    )  # fmt: skip
    model = solved.model()
    sequence = start_sequence(model, hparams)
    _, *asked = sequence.encode(tok, REQUESTS[:1], model, hparams.wording)
    found = {tok.decode(batch.input_ids[0]) for batch in asked}
    assert found == {
        f"<|user|>{question.format('France')}<|endoftext|><|assistant|>" for question in QUESTIONS
    }


def test_a_long_prompt_is_asked_again_without_context(solved: Subject) -> None:
    """Its context alone would make it longer than the model's positions reach (64)."""
    model, long = solved.model(), {**REQUESTS[0], "prompt": "France " * 24 + REQUESTS[0]["prompt"]}
    hparams = solved.hparams(rehearsed=3, rehearsal_contexts=["It was late. " * 4])
    apply_dafnet_to_model(model, solved.tok, [long, REQUESTS[1]], hparams)
    asked = [e.forms for e in getattr(model, STATE).held.rehearsal.edits.values()]
    assert asked[0][1] == asked[0][0] and asked[1][1] != asked[1][0]


def edit_one_by_one(model: Any, solved: Subject, hparams: DAFNetHyperParams) -> None:
    for request in REQUESTS:
        apply_dafnet_to_model(model, solved.tok, [request], hparams)


def test_a_rehearsal_is_part_of_what_a_sequence_keeps(solved: Subject) -> None:
    plain, rehearsed = solved.model(), solved.model()
    edit_one_by_one(plain, solved, solved.hparams())
    edit_one_by_one(rehearsed, solved, solved.hparams(rehearsed=2, past_dtype="bfloat16"))
    keys = 2 * sum(m.d_in for m in solved.edited)
    assert getattr(rehearsed, STATE).held.rehearsal.bytes_per_edit == keys
    assert not getattr(plain, STATE).held.rehearsal.edits


def test_a_sequence_goes_on_rehearsing_as_it_began(solved: Subject) -> None:
    """Else a fact that was edited again meanwhile would be asked with its former target."""
    first, other = REQUESTS[0], {**REQUESTS[0], "target_new": "Oslo"}
    began = solved.hparams(
        rehearsed=4, rehearsal_contexts=["It was late."], past_dtype="bfloat16"
    )  # fmt: skip
    model = solved.model()
    apply_dafnet_to_model(model, solved.tok, [first], began)
    apply_dafnet_to_model(model, solved.tok, [other], solved.hparams(rehearsed=0))
    apply_dafnet_to_model(model, solved.tok, REQUESTS[1:2], solved.hparams(rehearsed=1))
    same = solved.model()
    for request in (first, other, REQUESTS[1]):
        apply_dafnet_to_model(same, solved.tok, [request], began)
    assert not changes(model, snapshot(same))
    kept = list(getattr(model, STATE).held.rehearsal.edits.values())
    assert max(kept[0].forms[0].labels) == solved.tok(" Oslo")["input_ids"][0]


def test_a_rehearsal_that_fails_changes_nothing(
    solved: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, hparams = solved.model(), solved.hparams(rehearsed=2)
    apply_dafnet_to_model(model, solved.tok, REQUESTS[:2], hparams)
    held, before = list(getattr(model, STATE).held.rehearsal.edits.items()), snapshot(model)

    def failing(*_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("easyedit_dafnet.least_squares.Written.corrected", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        apply_dafnet_to_model(model, solved.tok, REQUESTS[2:], hparams)
    assert not changes(model, before)
    assert list(getattr(model, STATE).held.rehearsal.edits.items()) == held
    assert getattr(model, STATE).count == 2


def test_a_later_edit_of_the_same_fact_takes_the_place_of_the_earlier(solved: Subject) -> None:
    """What the earlier target gains over the unedited model is less than the later one gains."""
    prompt = {"prompt": "The capital of France", "subject": "France"}
    model, hparams = solved.model(), solved.hparams(value_steps=20)
    ids = solved.tok(prompt["prompt"], return_tensors="pt").input_ids
    first, second = (solved.tok(t)["input_ids"][0] for t in (" Paris", " Oslo"))

    def log_probs() -> torch.Tensor:
        with torch.no_grad():
            return model(ids).logits[0, -1].log_softmax(-1)

    unedited = log_probs()
    apply_dafnet_to_model(model, solved.tok, [{**prompt, "target_new": "Paris"}], hparams)
    once = log_probs()
    apply_dafnet_to_model(model, solved.tok, [{**prompt, "target_new": "Oslo"}], hparams)
    twice = log_probs()
    assert once[first] > unedited[first]
    assert twice[second] - unedited[second] > twice[first] - unedited[first]


def test_what_a_solved_sequence_keeps(solved: Subject) -> None:
    model = solved.model()
    edit(solved, model, REQUESTS[:3])
    sequence = getattr(model, STATE)
    written, d_in = sequence.held.written, solved.edited[0].d_in
    assert written.bytes_per_edit == 4 * d_in + 8
    assert sequence.bytes_per_edit > written.bytes_per_edit
    assert sequence.constant_bytes > len(solved.edited) * d_in**2 * 4


def test_a_subject_outside_the_prompt_changes_nothing(solved: Subject) -> None:
    model = solved.model()
    before = snapshot(model)
    bad = [REQUESTS[0], {**REQUESTS[1], "subject": "Madrid"}]
    with pytest.raises(RequestError, match="Request 1: the subject 'Madrid' is not in the prompt"):
        edit(solved, model, bad)
    assert not changes(model, before)


def test_the_settings_must_name_the_fusion_of_the_archive(solved: Subject) -> None:
    hparams = solved.hparams(fusion="mean")
    with pytest.raises(SettingsError, match=r"'fusion' is 'mean', but the archive .* 'least_sq"):
        apply_dafnet_to_model(solved.model(), solved.tok, REQUESTS[:1], hparams)
