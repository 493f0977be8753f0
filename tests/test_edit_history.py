from __future__ import annotations

import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from easyedit_dafnet import apply_dafnet_to_model
from easyedit_dafnet.checkpoint import fingerprint, load_dafnet
from easyedit_dafnet.dafnet_main import STATE, forget_edits, start_sequence
from easyedit_dafnet.edit_history import edit_history, warn_if_other_model
from tests.conftest import Subject
from tests.tiny import REQUESTS


def edit(subject: Subject, model: Any, requests: list[dict[str, str]]) -> dict[str, torch.Tensor]:
    """Loud edits, so that the weights are told apart from those of another model."""
    hparams = (
        subject.hparams(margin=6.0) if subject.fusion == "least_squares" else subject.hparams()
    )
    _, originals = apply_dafnet_to_model(
        model, subject.tok, requests, hparams, return_orig_weights=True
    )
    return originals


def reloaded(model: Any, folder: Path, **how: Any) -> Any:
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, **how).eval()


def told(subject: Subject, model: Any, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_if_other_model(load_dafnet(subject.archive), model)
    return caplog.text


def test_a_model_with_other_weights_is_warned_of(
    solved: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    model = solved.model()
    assert not told(solved, model, caplog)
    name = solved.edited[1].weight_name
    with torch.no_grad():
        model.get_parameter(name).mul_(1.1)
    assert solved.edited[1].name in told(solved, model, caplog)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edited_model_is_known_again_after_loading(
    solved: Subject, tmp_path: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model = solved.model()
    edit(solved, model, REQUESTS[:3])
    known = load_dafnet(solved.archive).base_model["fingerprint"]
    now = fingerprint(model, solved.edited)
    assert any(abs(now[name] / known[name] - 1) > 0.01 for name in known), "else nothing is tested"
    loaded = reloaded(model, tmp_path / solved.folder.name, torch_dtype=dtype)
    text = told(solved, loaded, caplog)
    assert "holds 3 DAFNet edits" in text and "was trained on" not in text
    edit(solved, loaded, REQUESTS[3:5])
    assert caplog.text.count("DAFNet edits from before") == 2, "told by the edit, too"
    edit(solved, loaded, REQUESTS[5:6])
    assert caplog.text.count("DAFNet edits from before") == 2, "and only once"
    again = reloaded(loaded, tmp_path / "again" / solved.folder.name)
    assert "holds 6 DAFNet edits" in told(solved, again, caplog)
    assert list(edit_history(again, solved.edited)) == [0, 3, 6]


def test_weights_that_were_put_back_count_as_unedited(
    solved: Subject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = solved.model()
    originals = edit(solved, model, REQUESTS[:3])
    model.load_state_dict(originals, strict=False)
    assert not told(solved, reloaded(model, tmp_path / solved.folder.name), caplog)
    edit(solved, model, REQUESTS[:2])
    assert list(edit_history(model, solved.edited)) == [0, 2]


def test_weights_that_were_put_back_to_a_loaded_state_hold_its_edits(
    solved: Subject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = solved.model()
    edit(solved, model, REQUESTS[:3])
    model = reloaded(model, tmp_path / solved.folder.name)
    originals = edit(solved, model, REQUESTS[3:5])
    model.load_state_dict(originals, strict=False)
    again = reloaded(model, tmp_path / "again" / solved.folder.name)
    assert "holds 3 DAFNet edits" in told(solved, again, caplog)


def test_the_whole_model_saved_with_torch_keeps_the_sequence(
    solved: Subject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = solved.model()
    edit(solved, model, REQUESTS[:3])
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    with caplog.at_level(logging.WARNING):
        edit(solved, loaded, REQUESTS[4:6])
    assert not caplog.text and getattr(loaded, STATE).count == 5
    edit(solved, model, REQUESTS[4:6])
    found = loaded.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


def test_a_sequence_that_is_taken_up_is_in_the_history(solved: Subject) -> None:
    model, other = solved.model(), solved.model()
    edit(solved, model, REQUESTS[:3])
    sequence = start_sequence(other, solved.hparams(margin=6.0))
    sequence.take_up(other, getattr(model, STATE).held, 3)
    assert edit_history(other, solved.edited) == edit_history(model, solved.edited)
    assert other.config.dafnet.keys() == {"0", "3"}


def test_a_copy_has_a_history_of_its_own(solved: Subject) -> None:
    model = solved.model()
    edit(solved, model, REQUESTS[:2])
    copied = deepcopy(model)
    edit(solved, copied, REQUESTS[4:5])
    assert [max(edit_history(m, solved.edited)) for m in (model, copied)] == [2, 3]


def test_an_edit_that_fails_leaves_the_configuration_as_it_was(solved: Subject) -> None:
    model = solved.model()
    before = model.config.to_json_string()
    with pytest.raises(ValueError, match="Request 1"):
        edit(solved, model, [REQUESTS[0], {**REQUESTS[1], "target_new": "  "}])
    assert model.config.to_json_string() == before
    edit(solved, model, REQUESTS[:1])
    assert json.loads(model.config.to_json_string(use_diff=False))["dafnet"].keys() == {"0", "1"}
    forget_edits(model)
    assert model.config.to_json_string() == before and not hasattr(model, STATE)


@pytest.mark.parametrize("record", [None, 3, {}, {"1": {}}, {"0": [1]}, {"a": {}}, {"0": {"x": 1}}])
def test_a_record_that_says_nothing_is_no_history(solved: Subject, record: Any) -> None:
    model = solved.model()
    model.config.dafnet = record
    assert edit_history(model, solved.edited) == {0: fingerprint(model, solved.edited)}


def test_a_network_that_was_trained_on_the_edited_model_fits_it(
    solved: Subject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = solved.model()
    edit(solved, model, REQUESTS[:3])
    loaded = reloaded(model, tmp_path / solved.folder.name)
    dafnet = deepcopy(load_dafnet(solved.archive))
    dafnet.base_model = {"name": "edited", "fingerprint": fingerprint(loaded, solved.edited)}
    with caplog.at_level(logging.WARNING):
        warn_if_other_model(dafnet, loaded)
    assert "was trained on" not in caplog.text
    dafnet.base_model["fingerprint"] = {
        n: 2 * v for n, v in fingerprint(model, solved.edited).items()
    }
    with caplog.at_level(logging.WARNING):
        warn_if_other_model(dafnet, loaded)
    assert "was trained on edited" in caplog.text
