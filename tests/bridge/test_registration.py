from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import easyedit_dafnet
from easyedit_dafnet.bridge import HostInfo, host_info, register, tokenizers, unregister
from easyedit_dafnet.dafnet_hparams import DAFNetHyperParams
from easyedit_dafnet.dafnet_main import apply_dafnet_to_model
from tests.conftest import Subject
from tests.tiny import LLAMA_MODULES, REQUESTS

Hparams = Callable[..., DAFNetHyperParams]
PROMPTS = [r["prompt"] for r in REQUESTS[:3]]
TARGETS = [r["target_new"] for r in REQUESTS[:3]]
REPHRASED = ["France has the capital", "Danielle Darrieux spoke", "Lyon is a city in"]


def parts() -> dict[str, Any]:
    """What registering may change in the host."""
    get = importlib.import_module
    editor = get("easyeditor.editors.editor")
    return {
        "alg_dict": dict(get("easyeditor.util.alg_dict").ALG_DICT),
        "alg_train_dict": dict(get("easyeditor.util.alg_train_dict").ALG_TRAIN_DICT),
        "base_editor": dict(vars(editor.BaseEditor)),
        "batch_editor": vars(editor.BatchEditor)["is_batchable_method"],
        "base_trainer": dict(vars(get("easyeditor.trainer.BaseTrainer").BaseTrainer)),
        "tokenizer": editor.LlamaTokenizer,
    }


def editor_for(hparams: DAFNetHyperParams) -> Any:
    from easyeditor import BaseEditor

    return BaseEditor.from_hparams(hparams)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def edited_directly(hparams: DAFNetHyperParams, *batches: list[dict[str, str]]) -> Any:
    """The weights after editing without EasyEdit, batch after batch."""
    model = AutoModelForCausalLM.from_pretrained(hparams.model_name)
    tok = AutoTokenizer.from_pretrained(hparams.model_name)
    for requests in batches:
        apply_dafnet_to_model(model, tok, requests, hparams)
    return weights(model)


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, value in a.items():
        torch.testing.assert_close(value, b[name])


def keeping(host: HostInfo) -> dict[str, bool]:
    """What makes the host restore the weights after each edit; main does so by default."""
    return {"keep_original_weight": True} if host.kind == "release" else {}


def accumulating(host: HostInfo) -> dict[str, bool]:
    return {} if host.kind == "release" else {"sequential_edit": True}


@pytest.fixture
def inputs() -> dict[str, Any]:
    ground_truth = ["Rome", "French", "France"]
    return {
        "prompts": PROMPTS,
        "target_new": TARGETS,
        "ground_truth": ["Paris", "French", "France"],
        "rephrase_prompts": REPHRASED,
        "locality_inputs": {
            "neighborhood": {
                "prompt": ["The capital of Italy is", "The twins speak", "Vienna is in"],
                "ground_truth": ground_truth,
            }
        },
        "portability_inputs": {"one_hop": {"prompt": REPHRASED, "ground_truth": ground_truth}},
        "verbose": False,
    }


def assert_scored(metrics: list[dict[str, Any]], count: int = 3) -> None:
    assert len(metrics) == count
    for i, entry in enumerate(metrics):
        assert entry["requested_rewrite"]["prompt"] == PROMPTS[i]
        for part in ("pre", "post"):
            assert 0 <= entry[part]["rewrite_acc"][0] <= 1
            assert 0 <= entry[part]["rephrase_acc"][0] <= 1
            assert 0 <= entry[part]["portability"]["one_hop_acc"][0] <= 1
        assert 0 <= entry["post"]["locality"]["neighborhood_acc"][0] <= 1


# ---- registering --------------------------------------------------------------------------------


def test_register_tells_the_host_and_can_be_repeated(host: HostInfo) -> None:
    before = parts()
    assert register() == host == host_info()
    assert parts() == before
    assert before["alg_dict"]["DAFNet"].__name__ == "apply_dafnet_to_model"
    assert "DAFNET" not in before["alg_train_dict"]


def test_unregister_puts_everything_back() -> None:
    register()
    unregister()
    if host_info().kind == "release":
        tokenizers.uninstall()
    before = parts()
    register()
    changed = {name for name, value in parts().items() if value != before[name]}
    assert {"alg_dict", "batch_editor", "base_trainer"} <= changed
    assert ({"base_editor", "tokenizer"} <= changed) == (host_info().kind == "release")
    unregister()
    assert parts() == before
    unregister()
    assert parts() == before


def test_only_dafnet_becomes_batchable(host: HostInfo) -> None:
    from easyeditor.editors.batch_editor import BatchEditor

    assert BatchEditor.is_batchable_method("DAFNet")
    assert BatchEditor.is_batchable_method("MEMIT")
    assert not BatchEditor.is_batchable_method("ROME")
    unregister()
    assert not BatchEditor.is_batchable_method("DAFNet")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("easyeditor.util.alg_dict", "ALG_DICT"),
        ("easyeditor.util.alg_train_dict", "ALG_TRAIN_DICT"),
    ],
)
def test_other_dafnet_is_not_shadowed(
    host: HostInfo, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    unregister()
    methods = getattr(importlib.import_module(module), name)
    monkeypatch.setitem(methods, "DAFNet" if name == "ALG_DICT" else "DAFNET", print)
    before = parts()["batch_editor"]
    with pytest.raises(RuntimeError, match="already has a method called DAFNet"):
        register()
    assert parts()["batch_editor"] is before
    assert print in methods.values()


def test_host_built_otherwise_is_refused(host: HostInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    unregister()
    batch_editor = importlib.import_module("easyeditor.editors.batch_editor").BatchEditor
    monkeypatch.setattr(batch_editor, "is_batchable_method", lambda self, name: False)
    with pytest.raises(RuntimeError, match="is_batchable_method is not a static method"):
        register()
    assert "DAFNet" not in parts()["alg_dict"]


def test_host_with_a_part_missing_is_refused(
    host: HostInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    unregister()
    module = importlib.import_module("easyeditor.trainer.BaseTrainer")
    monkeypatch.delattr(module, "BaseTrainer")
    with pytest.raises(RuntimeError, match="is not an EasyEdit that DAFNet knows"):
        register()
    assert "DAFNet" not in importlib.import_module("easyeditor.util.alg_dict").ALG_DICT


def test_entry_point_registers() -> None:
    found = [e for e in entry_points(group="easyeditor.methods") if e.name == "DAFNet"]
    if not found:
        pytest.skip("easyedit_dafnet is on the path, but not installed")
    assert found[0].load() is easyedit_dafnet.register


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DAFNET", "DAFNet"])
def test_edit_trainer_is_refused_before_the_model_is_loaded(host: HostInfo, name: str) -> None:
    from easyeditor import EditTrainer

    config = SimpleNamespace(alg=name, model_name="no-such-model", model_class="LlamaForCausalLM")
    with pytest.raises(ValueError, match=r"EditTrainer .* easyedit_dafnet\.DAFNetTrainer"):
        EditTrainer(config, [], [])


def test_edit_trainer_still_takes_other_methods(host: HostInfo) -> None:
    from easyeditor import EditTrainer

    config = SimpleNamespace(alg="MEND", model_name="no-such-model", model_class="NoSuchClass")
    with pytest.raises(AttributeError, match="NoSuchClass"):
        EditTrainer(config, [], [])


# ---- editing ------------------------------------------------------------------------------------


def test_edit_restores_after_each_request(
    host: HostInfo, hparams: Hparams, inputs: dict[str, Any]
) -> None:
    editor = editor_for(hparams())
    assert editor.tok.padding_side == "left"
    before = weights(editor.model)
    metrics, model, originals = editor.edit(**inputs, **keeping(host))
    assert_scored(metrics)
    assert model is editor.model
    assert set(originals) == {f"{name}.weight" for name in LLAMA_MODULES}
    assert same(before, weights(model))


def test_edit_accumulates_when_asked_to(
    host: HostInfo, hparams: Hparams, inputs: dict[str, Any]
) -> None:
    editor = editor_for(hparams())
    before = weights(editor.model)
    metrics, model, _ = editor.edit(**inputs, **accumulating(host))
    assert_scored(metrics)
    after = weights(model)
    assert_close(after, edited_directly(hparams(), *[[r] for r in REQUESTS[:3]]))
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {f"{name}.weight" for name in LLAMA_MODULES}


def test_edit_scores_the_edited_model(
    host: HostInfo, hparams: Hparams, inputs: dict[str, Any]
) -> None:
    """Locality is 1 exactly where the answer stays."""
    editor = editor_for(hparams())
    apply = editor.apply_algo

    def locality_with_changes_times(factor: float) -> float:
        def scaled(model: Any, *args: Any, **kwargs: Any) -> Any:
            before = weights(model)
            model, originals = apply(model, *args, **kwargs)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(before[name] + factor * (parameter - before[name]))
            return model, originals

        editor.apply_algo = scaled
        metrics, _, _ = editor.edit(**inputs, **keeping(host))
        return sum(m["post"]["locality"]["neighborhood_acc"][0] for m in metrics) / 3

    assert locality_with_changes_times(0) == 1
    assert locality_with_changes_times(50) < 1


def test_edit_of_gpt2(
    host: HostInfo, gpt2_hparams: DAFNetHyperParams, inputs: dict[str, Any]
) -> None:
    editor = editor_for(gpt2_hparams)
    before = weights(editor.model)
    metrics, model, _ = editor.edit(**inputs, **keeping(host))
    assert_scored(metrics)
    assert same(before, weights(model))
    _, model, _ = editor.edit(**inputs, **accumulating(host))
    assert_close(weights(model), edited_directly(gpt2_hparams, *[[r] for r in REQUESTS[:3]]))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "margin": 3.0,
            "margin_decay": 0.5,
            "rehearsed": 2,
            "rehearsal_contexts": ["It was late."],
        },
    ],
)
def test_edit_where_subjects_end(
    host: HostInfo, solved: Subject, inputs: dict[str, Any], settings: dict[str, Any]
) -> None:
    """With fusion by least squares the host's `subject` says where; without it, it is guessed."""
    hparams = solved.hparams(**settings)
    editor = editor_for(hparams)
    before = weights(editor.model)
    subjects = ["France", "Danielle Darrieux", "Lyon"]
    metrics, model, originals = editor.edit(**inputs, subject=subjects, **keeping(host))
    assert_scored(metrics)
    assert set(originals) == {f"{name}.weight" for name in solved.modules}
    assert same(before, weights(model))
    _, model, _ = editor.edit(**inputs, subject=subjects, **accumulating(host))
    named = [[{**r, "subject": s}] for r, s in zip(REQUESTS[:3], subjects, strict=True)]
    assert_close(weights(model), edited_directly(hparams, *named))
    guessed = editor_for(hparams)
    _, other, _ = guessed.edit(**inputs, **accumulating(host))
    assert_close(weights(other), weights(model))


def test_edit_requests(host: HostInfo, hparams: Hparams) -> None:
    requests = [{**r, "ground_truth": "a", "locality": {}, "portability": {}} for r in REQUESTS[:3]]
    editor = editor_for(hparams())
    metrics, model, _ = editor.edit_requests(requests, verbose=False, **accumulating(host))
    assert [m["requested_rewrite"]["target_new"] for m in metrics] == TARGETS
    assert_close(weights(model), edited_directly(hparams(), *[[r] for r in REQUESTS[:3]]))


def test_batch_edit_restores_after_each_batch(
    host: HostInfo, hparams: Hparams, inputs: dict[str, Any]
) -> None:
    editor = editor_for(hparams(batch_size=2))
    before = weights(editor.model)
    metrics, model, originals = editor.batch_edit(**inputs, **keeping(host))
    assert_scored(metrics)
    assert set(originals) == {f"{name}.weight" for name in LLAMA_MODULES}
    assert same(before, weights(model))


def test_batch_edit_accumulates_when_asked_to(
    host: HostInfo, hparams: Hparams, inputs: dict[str, Any]
) -> None:
    editor = editor_for(hparams(batch_size=2))
    metrics, model, _ = editor.batch_edit(**inputs, **accumulating(host))
    assert_scored(metrics)
    expected = edited_directly(hparams(), REQUESTS[:2], REQUESTS[2:3])
    assert_close(weights(model), expected)


def test_normal_edit_takes_all_requests_at_once(host: HostInfo, hparams: Hparams) -> None:
    if host.kind == "release":
        pytest.skip("the release has no normal_edit")
    editor = editor_for(hparams())
    before = weights(editor.model)
    sizes = []
    apply = editor.apply_algo

    def watched(model: Any, tok: Any, requests: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(requests))
        edited = apply(model, tok, requests, *args, **kwargs)
        assert not same(before, weights(model))
        return edited

    editor.apply_algo = watched
    _, model, originals = editor.normal_edit(PROMPTS, TARGETS)
    assert sizes == [3]
    assert set(originals) == {f"{name}.weight" for name in LLAMA_MODULES}
    assert same(before, weights(model))


def test_edits_start_afresh_once_the_host_has_restored(
    host: HostInfo, hparams: Hparams, inputs: dict[str, Any]
) -> None:
    editor = editor_for(hparams())
    editor.edit(**inputs, **keeping(host))
    single = {
        name: value[:1] for name, value in inputs.items() if name in ("prompts", "target_new")
    }
    _, model, _ = editor.edit(**single, verbose=False, **accumulating(host))
    assert_close(weights(model), edited_directly(hparams(), REQUESTS[:1]))


def test_two_editors_do_not_meet(host: HostInfo, hparams: Hparams) -> None:
    first, second = editor_for(hparams()), editor_for(hparams())
    for prompt, target in zip(PROMPTS[:2], TARGETS[:2], strict=True):
        first.edit([prompt], [target], verbose=False, **accumulating(host))
    _, model, _ = second.edit(PROMPTS[:1], TARGETS[:1], verbose=False, **accumulating(host))
    assert_close(weights(model), edited_directly(hparams(), REQUESTS[:1]))
    assert_close(weights(first.model), edited_directly(hparams(), *[[r] for r in REQUESTS[:2]]))


# ---- what the release alone has -----------------------------------------------------------------


@pytest.fixture
def release(host: HostInfo) -> Iterator[HostInfo]:
    if host.kind != "release":
        pytest.skip("only the release has this")
    yield host


def test_release_edits_a_dataset(release: HostInfo, hparams: Hparams, tmp_path: Path) -> None:
    from easyeditor import CounterFactDataset

    records = [
        {**REQUESTS[i], "case_id": 10 + i, "ground_truth": "a", "rephrase_prompt": REPHRASED[i]}
        for i in range(3)
    ]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    editor = editor_for(hparams(batch_size=2))
    before = weights(editor.model)
    dataset = CounterFactDataset(str(tmp_path / "facts.json"))
    metrics, model, _ = editor.edit_dataset(dataset, keep_original_weight=True, verbose=False)
    assert [m["case_id"] for m in metrics] == [10, 11, 12]
    assert all(m["post"].keys() >= {"rewrite_acc", "rephrase_acc"} for m in metrics)
    assert same(before, weights(model))
    _, model, _ = editor.edit_dataset(dataset, verbose=False)
    assert_close(weights(model), edited_directly(hparams(), REQUESTS[:2], REQUESTS[2:3]))


def test_release_batch_edit_takes_the_arguments_of_its_signature(
    release: HostInfo, hparams: Hparams
) -> None:
    editor = editor_for(hparams(batch_size=3))
    metrics, _, _ = editor.batch_edit(
        PROMPTS, TARGETS, None, None, ["The twins", "Vienna is", "London"], ["a", "b", "c"]
    )
    assert len(metrics) == 3
    for entry, prompt in zip(metrics, ["The twins", "Vienna is", "London"], strict=True):
        assert entry["requested_rewrite"]["locality"]["locality"]["prompt"] == prompt
        assert 0 <= entry["post"]["locality"]["locality_acc"][0] <= 1
        assert entry["requested_rewrite"]["ground_truth"] == "<|endoftext|>"


def test_release_batch_edit_scores_the_unedited_model_first(
    release: HostInfo, hparams: Hparams, inputs: dict[str, Any]
) -> None:
    """Also when edits accumulate, where the release itself scores the edited model twice."""
    expected, _, _ = editor_for(hparams()).edit(**inputs)
    metrics, _, _ = editor_for(hparams(batch_size=3)).batch_edit(**inputs)
    assert [m["pre"]["rewrite_acc"] for m in metrics] == [m["pre"]["rewrite_acc"] for m in expected]


def test_release_batch_edit_refuses_uneven_lists(release: HostInfo, hparams: Hparams) -> None:
    editor = editor_for(hparams(batch_size=3))
    with pytest.raises(ValueError, match="3 prompts, 2 targets and 3 ground truths"):
        editor.batch_edit(PROMPTS, TARGETS[:2])
    with pytest.raises(ValueError, match="nothing to edit"):
        editor.batch_edit([], [])


def test_release_keeps_its_own_batch_edit_for_other_methods(release: HostInfo) -> None:
    from easyeditor import BaseEditor

    other = SimpleNamespace(alg_name="ROME")
    with pytest.raises(AssertionError):
        BaseEditor.batch_edit(other, ["a"], ["b"])
