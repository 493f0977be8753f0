from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from easyedit_dafnet.losses import (
    LossTerm,
    backward_losses,
    divergence,
    loss_texts,
    negative_log_likelihood,
)
from easyedit_dafnet.records import IGNORE, encode_targets
from tests.tiny import LLAMA_MODULES, REQUESTS, tiny_llama, tokenizer

TOK = tokenizer()
LABELS = torch.tensor([[IGNORE, 3, 1, IGNORE], [2, IGNORE, IGNORE, IGNORE]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")
    return AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)


def test_negative_log_likelihood_is_the_sum_of_the_cross_entropies() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(
        logits.flatten(0, 1), LABELS.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    torch.testing.assert_close(negative_log_likelihood(logits, LABELS), expected)


def test_divergence_is_that_of_the_edited_from_the_unedited() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(2, 4, 5, generator=generator) for _ in range(2))
    targets = LABELS != IGNORE
    expected = 0.0
    for i, t in targets.nonzero().tolist():
        p, q = before[i, t].softmax(-1), after[i, t].softmax(-1)
        expected += (p * (p / q).log()).sum().item()
    assert divergence(before, after, targets).item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0
    assert divergence(after, before, targets).item() != pytest.approx(expected, rel=1e-3)
    # Logits that differ by a constant give the same probabilities.
    assert divergence(before, before + 2, targets).item() == pytest.approx(0, abs=1e-5)
    # Only the targets count.
    changed = torch.where(targets[..., None], before, after)
    assert divergence(before, changed, targets).item() == pytest.approx(0, abs=1e-5)


def test_each_record_gives_the_losses_that_it_has_texts_for() -> None:
    records = [
        {"prompt": "London", "target_new": "Rome"},
        {
            "prompt": "Oslo",
            "target_new": "Athens",
            "rephrase_prompt": "Where is Oslo?",
            "prefix": "It is well known.",
            "locality_prompt": "The city of Lyon is in",
            "locality_ground_truth": "France",
        },
    ]
    found = {name: (kind, batch) for name, kind, batch in loss_texts(TOK, records)}
    assert {name: kind for name, (kind, _) in found.items()} == {
        "reliability": "reliability",
        "rephrase": "generality",
        "prefix": "generality",
        "locality": "locality",
    }
    texts = {
        name: [
            TOK.decode(row[mask == 1])
            for row, mask in zip(b.input_ids, b.attention_mask, strict=True)
        ]
        for name, (_, b) in found.items()
    }
    assert texts == {
        "reliability": ["London Rome", "Oslo Athens"],
        "rephrase": ["Where is Oslo? Athens"],
        "prefix": ["It is well known. Oslo Athens"],
        "locality": ["The city of Lyon is in France"],
    }
    assert [name for name, _, _ in loss_texts(TOK, records[:1])] == ["reliability"]


@pytest.mark.parametrize("batch_size", [2, 100])
def test_the_gradient_is_that_of_the_weighted_sum_of_means(model: Any, batch_size: int) -> None:
    batch = encode_targets(
        TOK, [r["prompt"] for r in REQUESTS], [r["target_new"] for r in REQUESTS]
    )
    terms = [
        LossTerm("reliability", "reliability", 0.3, batch[:5]),
        LossTerm("locality", "locality", 0.7, batch[4:]),
    ]
    names = [f"{m}.weight" for m in LLAMA_MODULES]
    torch.manual_seed(0)
    edited = {
        n: model.get_parameter(n) + 0.05 * torch.randn_like(model.get_parameter(n)) for n in names
    }
    leaves = {n: p.clone().requires_grad_() for n, p in edited.items()}
    losses = backward_losses(model, terms, leaves, batch_size)

    plain = {n: p.clone().requires_grad_() for n, p in edited.items()}

    def logits(term: LossTerm, parameters: dict[str, Any]) -> Any:
        inputs = {"attention_mask": term.batch.attention_mask}
        return functional_call(model, parameters, (term.batch.input_ids,), inputs).logits

    learnt = terms[0].weight * F.cross_entropy(
        logits(terms[0], plain).flatten(0, 1), terms[0].batch.labels.flatten(), ignore_index=IGNORE
    )
    targets = terms[1].batch.targets
    kept = terms[1].weight * F.kl_div(
        logits(terms[1], plain)[targets].log_softmax(-1),
        logits(terms[1], {})[targets].softmax(-1),
        reduction="batchmean",
    )
    (learnt + kept).backward()
    assert losses["reliability"] == pytest.approx(learnt.item(), rel=1e-5)
    assert losses["locality"] == pytest.approx(kept.item(), rel=1e-4)
    assert losses["loss"] == pytest.approx((learnt + kept).item(), rel=1e-5)
    for name in names:
        torch.testing.assert_close(leaves[name].grad, plain[name].grad, rtol=1e-4, atol=1e-6)


def test_unedited_parameters_lose_nothing_in_locality(model: Any) -> None:
    batch = encode_targets(TOK, ["London"], ["is a town"])
    name = f"{LLAMA_MODULES[0]}.weight"
    leaf = model.get_parameter(name).clone().requires_grad_()
    losses = backward_losses(model, [LossTerm("kept", "locality", 1.0, batch)], {name: leaf}, 8)
    assert losses["loss"] == pytest.approx(0, abs=1e-6)
    assert leaf.grad is not None and leaf.grad.abs().max() < 1e-5
