from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from easyedit_dafnet import apply_dafnet_to_model
from easyedit_dafnet.dafnet_hparams import DAFNetHyperParams
from easyedit_dafnet.dafnet_main import STATE, start_sequence
from easyedit_dafnet.edit_state import (
    CONTENT,
    FORMAT,
    SavedState,
    StateError,
    is_state,
    packed,
    save_state,
)
from tests.conftest import Subject
from tests.tiny import REQUESTS

# One is edited again, one has another's subject in the same words: both are known by their key.
FACTS = [
    *REQUESTS[:5],
    {**REQUESTS[1], "target_new": "Oslo"},
    {"prompt": "The capital of France has", "target_new": "Lisbon", "subject": "France"},
    *REQUESTS[5:],
]
STRONG: dict[str, Any] = {
    "margin": 3.0,
    "margin_decay": 0.5,
    "protection": 4.0,
    "rehearsed": 2,
    "rehearsal_contexts": ["It was late.", "So it goes."],
    "others_asked": 2,
    "past_dtype": "bfloat16",
}
FORMS = ["llama", "gpt2", "solved-llama", "solved-gpt2"]


@pytest.fixture(params=FORMS)
def form(
    request: pytest.FixtureRequest, subjects: Callable[[str], Subject]
) -> tuple[Subject, DAFNetHyperParams]:
    subject = subjects(request.param)
    strong = subject.fusion == "least_squares"
    return subject, subject.hparams(**(STRONG if strong else {}))


def edit(model: Any, subject: Subject, hparams: DAFNetHyperParams, facts: list[Any]) -> None:
    for fact in facts:
        apply_dafnet_to_model(model, subject.tok, [fact], hparams)


def assert_same_weights(one: Any, other: Any) -> None:
    weights = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_a_sequence_that_was_saved_goes_on_bit_for_bit(
    form: tuple[Subject, DAFNetHyperParams], tmp_path: Path
) -> None:
    (subject, hparams), done = form, 6
    whole, first, then = (subject.model() for _ in range(3))
    edit(whole, subject, hparams, FACTS)
    edit(first, subject, hparams, FACTS[:done])
    path = tmp_path / "state"
    save_state(path, getattr(first, STATE), {"why": "a test"})
    assert is_state(path) and [p.name for p in tmp_path.iterdir()] == ["state"]

    state = SavedState(path)
    assert state.count == done and state.about == {"why": "a test"}
    state.restore(start_sequence(then, hparams), then)
    assert_same_weights(then, first)
    edit(then, subject, hparams, FACTS[done:])
    assert_same_weights(then, whole)
    assert getattr(then, STATE).count == len(FACTS)


def test_the_room_behind_what_is_kept_is_not_written(solved: Subject, tmp_path: Path) -> None:
    """Buffers have room for more edits, which would be most of the file."""
    model = solved.model()
    edit(model, solved, solved.hparams(**STRONG), FACTS[:2])
    save_state(tmp_path / "state", getattr(model, STATE))
    rows = getattr(model, STATE).held.rehearsal.keys[0]
    sizes = [t.shape[2] for t in load_file(tmp_path / "state").values() if t.ndim == 4]
    assert sizes and set(sizes) == {2} and rows.buffer.shape[2] > 2


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "format", "tensor", "class"])
def test_a_damaged_state_is_refused_in_one_sentence(
    solved: Subject, damage: str, tmp_path: Path
) -> None:
    model, path = solved.model(), tmp_path / "state"
    edit(model, solved, solved.hparams(), FACTS[:1])
    save_state(path, getattr(model, STATE))
    tensors = load_file(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "garbage":
        path.write_bytes(b"\x00" * 500)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "format":
        save_file(tensors, path, {"format": "easyedit_dafnet edits/0"})
    elif damage == "tensor":
        save_file({k: v for k, v in tensors.items() if k != "0"}, path, {"format": FORMAT})
    elif damage == "class":
        content = tensors[CONTENT].numpy().tobytes().replace(b'"Kept"', b'"Path"')
        content = content.replace(b'"Held"', b'"Path"')
        tensors[CONTENT] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        save_file(tensors, path, {"format": FORMAT})
    other = solved.model()
    sequence = start_sequence(other, solved.hparams())
    with pytest.raises(StateError, match="is damaged or of another version") as error:
        SavedState(path).restore(sequence, other)
    assert sequence.count == 0
    assert_same_weights(other, solved.model())
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_state_of_other_modules_changes_nothing(
    subjects: Callable[[str], Subject], tmp_path: Path
) -> None:
    one, other = subjects("solved-llama"), subjects("solved-gpt2")
    model, another = one.model(), other.model()
    edit(model, one, one.hparams(), FACTS[:1])
    save_state(tmp_path / "state", getattr(model, STATE))
    sequence = start_sequence(another, other.hparams())
    with pytest.raises(StateError):
        SavedState(tmp_path / "state").restore(sequence, another)
    assert sequence.count == 0
    assert_same_weights(another, other.model())


def test_what_a_state_does_not_know_is_not_left_out_of_it() -> None:
    with pytest.raises(TypeError, match="a DAFNetHyperParams is no part of"):
        packed([DAFNetHyperParams(model_name="m", inner_params=["p"])], {})
