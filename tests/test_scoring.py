from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from easyedit_dafnet.bridge import load_easyeditor
from easyedit_dafnet.language_model import LanguageModel
from easyedit_dafnet.losses import record_texts
from easyedit_dafnet.scoring import agreement, sequence_scores
from tests.tiny import LLAMA_MODULES, TEXT, tiny_llama, tokenizer

TOK = tokenizer()


RECORDS = [
    {"prompt": prompt, "target_new": target, "rephrase_prompt": f"It is well known that {prompt}",
     "locality_prompt": f"Not {prompt}", "locality_ground_truth": "Vienna", "ground_truth": "x"}
    for prompt, target in (
        ("The capital of France is", "Paris, and that of Italy"),
        ("The mother tongue of the twins is", "English; that of Danielle is not"),
        ("London Berlin Madrid", "Lisbon Vienna Tokyo"),
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that has learnt a little, so that some of its predictions are right."""
    folder = tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(24):
        ids = TOK(TEXT[step % len(TEXT)], return_tensors="pt")["input_ids"]
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.requires_grad_(False)


def scores_of(
    model: Any, records: list[dict[str, str]], parameters: dict[str, torch.Tensor]
) -> dict[str, float]:
    language_model = LanguageModel(model, LLAMA_MODULES)
    prepared = []
    for record in records:
        texts = record_texts(TOK, record, model)
        for name in ("locality", "same_subject"):
            if name in texts:
                (texts[name],) = language_model.with_unedited([texts[name]])
        prepared.append(texts)
    found = sequence_scores(language_model, prepared, parameters)
    return {score: fmean(values) for score, values in found.items() if values}


def test_agreement_is_the_fraction_of_tokens_of_each_text() -> None:
    a = [torch.tensor([1, 2, 3, 4]), torch.tensor([5])]
    assert agreement(a, [torch.tensor([1, 2, 3, 0]), torch.tensor([5])]) == [0.75, 1]
    assert agreement(a, [torch.tensor([1, 0, 0, 0]), torch.tensor([0])]) == [0.25, 0]


def test_scores_count_the_tokens_that_the_model_puts_first(model: Any) -> None:
    scores = scores_of(model, RECORDS, {})
    assert scores.keys() == {"reliability", "generality", "locality"}
    assert scores["locality"] == 1, "nothing is edited"

    def accuracy(key: str) -> float:
        found = []
        for r in RECORDS:
            ids = TOK(f"{r[key]} {r['target_new']}", return_tensors="pt")["input_ids"]
            start = len(TOK(r[key])["input_ids"])
            with torch.no_grad():
                best = model(ids).logits[0].argmax(-1)
            found.append((best[start - 1 : -1] == ids[0, start:]).float().mean().item())
        return fmean(found)

    assert 0 < scores["reliability"] < 1 and 0 < scores["generality"] < 1
    assert scores["reliability"] == pytest.approx(accuracy("prompt"))
    assert scores["generality"] == pytest.approx(accuracy("rephrase_prompt"))


def test_the_scores_are_of_the_given_parameters(model: Any) -> None:
    name = "lm_head.weight"
    changed = {name: -model.get_parameter(name).detach()}
    scores = scores_of(model, RECORDS, changed)
    assert scores["locality"] == 0, "every most probable token is another one"
    assert scores_of(model, RECORDS, {})["locality"] == 1


def test_other_questions_of_the_subject_are_compared_with_the_unedited_model(model: Any) -> None:
    asked = {"same_subject_prompt": "France is in", "same_subject_ground_truth": "Vienna, not Rome"}
    records = [{"prompt": "France", "target_new": "Rome", **asked}]
    assert scores_of(model, records, {})["same_subject"] == 1
    changed = {"lm_head.weight": -model.get_parameter("lm_head.weight").detach()}
    assert scores_of(model, records, changed)["same_subject"] == 0


def test_what_no_record_has_is_not_scored(model: Any) -> None:
    records = [{"prompt": "London", "target_new": "Rome"}]
    assert scores_of(model, records, {}).keys() == {"reliability"}


def test_scores_are_those_of_easyedit(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # EasyEdit writes logs/ into the working folder
    try:
        load_easyeditor()
    except ImportError as error:
        pytest.skip(str(error))
    from easyeditor.evaluate import compute_edit_quality

    hparams = SimpleNamespace(max_length=40, alg_name="FT", evaluation_type=None)
    edited = deepcopy(model)
    with torch.no_grad():
        edited.get_submodule(LLAMA_MODULES[0]).weight.mul_(-1)
    for scored in (model, edited):
        theirs = [
            compute_edit_quality(
                scored, "tiny-llama", hparams, TOK, {"locality": {}, "portability": {}, **r}, "cpu"
            )
            for r in RECORDS
        ]
        ours = scores_of(scored, RECORDS, {})
        assert ours["reliability"] == pytest.approx(fmean(fmean(t["rewrite_acc"]) for t in theirs))
        assert ours["generality"] == pytest.approx(fmean(fmean(t["rephrase_acc"]) for t in theirs))
