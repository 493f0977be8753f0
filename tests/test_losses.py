from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from easyedit_dafnet.edit_requests import RequestError
from easyedit_dafnet.language_model import LanguageModel, Text, texts_of
from easyedit_dafnet.losses import (
    KINDS,
    LossTerm,
    backward_losses,
    divergence,
    negative_log_likelihood,
    record_texts,
)
from easyedit_dafnet.records import IGNORE, encode_targets
from tests.tiny import LLAMA_MODULES, REQUESTS, tiny_llama, tokenizer

TOK = tokenizer()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")
    return AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)


def test_negative_log_likelihood_and_its_gradient_at_the_logits() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([3, 1, 2])
    expected = -sum(logits[t].softmax(-1)[label].log() for t, label in enumerate(labels))
    (wanted,) = torch.autograd.grad(torch.as_tensor(expected), logits)
    log_q = logits.detach().log_softmax(-1)
    gradient = log_q.exp()
    found = negative_log_likelihood(log_q, labels, gradient)
    torch.testing.assert_close(found, torch.as_tensor(expected).detach())
    torch.testing.assert_close(gradient, wanted)


def test_divergence_of_the_edited_from_the_unedited_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(3, 5, generator=generator) for _ in range(2))
    after.requires_grad_()
    expected = torch.zeros(())
    for t in range(3):
        p, q = before[t].softmax(-1), after[t].softmax(-1)
        expected = expected + (p * (p / q).log()).sum()
    (wanted,) = torch.autograd.grad(expected, after)
    log_q, log_p = after.detach().log_softmax(-1), before.log_softmax(-1)
    gradient = log_q.exp()
    found = divergence(log_q, log_p, gradient)
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(gradient, wanted)
    assert found > 0
    other = divergence(log_p, log_q, log_p.exp())
    assert other.item() != pytest.approx(found.item(), rel=1e-3), "it has a direction"
    gradient = log_p.exp()
    assert divergence(log_p, log_p, gradient).item() == 0 and not gradient.any()


def test_each_record_gives_the_losses_that_it_has_texts_for(model: Any) -> None:
    records = [
        {"prompt": "London", "target_new": "Rome"},
        {
            "prompt": "Oslo",
            "target_new": "Athens",
            "rephrase_prompt": "Where is Oslo?",
            "prefix": "It is well known.",
            "locality_prompt": "The city of Lyon is in",
            "locality_ground_truth": "France",
            "same_subject_prompt": "Oslo is in",
            "same_subject_ground_truth": "Norway",
        },
    ]
    texts = record_texts(TOK, records[1], model)
    assert {name: KINDS[name] for name in texts} == {
        "reliability": "reliability",
        "rephrase": "generality",
        "prefix": "generality",
        "locality": "locality",
        "same_subject": "same_subject",
    }
    assert {name: TOK.decode(text.ids) for name, text in texts.items()} == {
        "reliability": "Oslo Athens",
        "rephrase": "Where is Oslo? Athens",
        "prefix": "It is well known. Oslo Athens",
        "locality": "The city of Lyon is in France",
        "same_subject": "Oslo is in Norway",
    }
    assert {name: TOK.decode(text.target_labels) for name, text in texts.items()} == {
        "reliability": " Athens",
        "rephrase": " Athens",
        "prefix": " Athens",
        "locality": " France",
        "same_subject": " Norway",
    }
    assert list(record_texts(TOK, records[0], model)) == ["reliability"]


def test_records_that_cannot_be_used_are_named(model: Any) -> None:
    record = {"prompt": "London is " * 40, "target_new": "Rome"}
    with pytest.raises(
        RequestError, match=r"the reliability text of 'London is .* tokens"
    ) as error:
        record_texts(TOK, record, model)
    record = {**record, "prompt": "Oslo", "locality_prompt": "", "prefix": "Rome " * 70}
    with pytest.raises(RequestError, match="the prefix text of 'Oslo' takes"):
        record_texts(TOK, record, model)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.fixture(scope="module")
def language_model(model: Any) -> LanguageModel:
    return LanguageModel(model, LLAMA_MODULES)


def texts_for(model: LanguageModel, requests: list[dict[str, str]]) -> list[Text]:
    """With all that a term may need."""
    batch = encode_targets(
        TOK, [r["prompt"] for r in requests], [r["target_new"] for r in requests]
    )
    return model.with_unedited(model.with_hidden(texts_of(batch)))


@pytest.mark.parametrize("batch_size", [2, 100])
def test_the_gradient_is_that_of_the_weighted_sum_of_means(
    language_model: LanguageModel, batch_size: int
) -> None:
    model, texts = language_model.model, texts_for(language_model, REQUESTS)
    terms = [LossTerm("reliability", 0.3, texts[:5]), LossTerm("locality", 0.7, texts[4:])]
    names = [f"{m}.weight" for m in LLAMA_MODULES]
    torch.manual_seed(0)
    edited = {
        n: model.get_parameter(n) + 0.05 * torch.randn_like(model.get_parameter(n)) for n in names
    }
    leaves = {n: p.clone().requires_grad_() for n, p in edited.items()}
    losses = backward_losses(language_model, terms, leaves, batch_size)

    plain = {n: p.clone().requires_grad_() for n, p in edited.items()}

    def logits(term: LossTerm, parameters: dict[str, Any]) -> Any:
        parts = [functional_call(model, parameters, (t.ids[None],)).logits[0] for t in term.texts]
        return torch.cat(
            [part[t.labels != IGNORE] for part, t in zip(parts, term.texts, strict=True)]
        )

    labels = torch.cat([t.target_labels for t in terms[0].texts])
    learnt = 0.3 * F.cross_entropy(logits(terms[0], plain), labels)
    kept = 0.7 * F.kl_div(
        logits(terms[1], plain).log_softmax(-1),
        logits(terms[1], {}).softmax(-1),
        reduction="batchmean",
    )
    (learnt + kept).backward()
    assert losses["reliability"] == pytest.approx(learnt.item(), rel=1e-5)
    assert losses["locality"] == pytest.approx(kept.item(), rel=1e-4)
    assert losses["loss"] == pytest.approx((learnt + kept).item(), rel=1e-5)
    for name in names:
        torch.testing.assert_close(leaves[name].grad, plain[name].grad, rtol=1e-4, atol=1e-6)


def test_unedited_parameters_lose_nothing_in_locality(language_model: LanguageModel) -> None:
    texts = texts_for(language_model, [{"prompt": "London", "target_new": "is a town"}])
    name = f"{LLAMA_MODULES[0]}.weight"
    leaf = language_model.model.get_parameter(name).clone().requires_grad_()
    term = LossTerm("locality", 1.0, texts)
    losses = backward_losses(language_model, [term], {name: leaf}, 8)
    assert losses["loss"] == pytest.approx(0, abs=1e-6)
    assert leaf.grad is not None and leaf.grad.abs().max() < 1e-5
