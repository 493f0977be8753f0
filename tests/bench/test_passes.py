from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, MambaConfig

from easyedit_dafnet.bench import passes
from easyedit_dafnet.bench.passes import Asked, Passes, padded, trees
from tests.tiny import ARCHITECTURES, TEXT, architecture, tiny_gpt2, tiny_llama, tokenizer

TOK: Any = tokenizer()
PROMPTS = [
    "The capital of France is",
    "The capital of Italy is",
    "The capital of Italy is not",
    "The",
    "In which country is the city of Lyon? It is in",
    "London Berlin Madrid",
]
IDS: list[list[int]] = TOK(PROMPTS)["input_ids"]
ASKED = [Asked(ids, min(i, len(ids) - 1)) for i, ids in enumerate(IDS)]
MODELS = ["llama", "gpt2", "mamba", *ARCHITECTURES]


class Wrapper(nn.Module):
    """As methods return them: the model is inside, and gives its logits as a tensor."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> torch.Tensor:
        return self.model(**inputs).logits

    def generate(self, **inputs: Any) -> torch.Tensor:
        return self.model.generate(**inputs)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_llama(tmp_path_factory.mktemp("passes") / "tiny-llama")
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def model(request: pytest.FixtureRequest, llama: Any, tmp_path: Path) -> Any:
    if request.param == "llama":
        return llama
    if request.param == "gpt2":
        return AutoModelForCausalLM.from_pretrained(tiny_gpt2(tmp_path / "tiny-gpt2")).eval()
    if request.param == "mamba":
        torch.manual_seed(0)
        config = MambaConfig(vocab_size=420, hidden_size=32, state_size=4, num_hidden_layers=2)
        return AutoModelForCausalLM.from_config(config).eval()
    return architecture(request.param, "eager")[0]


def plainly(model: Any, texts: list[Asked]) -> list[list[int]]:
    found = []
    for text in texts:
        with torch.no_grad():
            best = model(torch.tensor([text.ids])).logits[0].argmax(-1)
        found.append(best[text.first :].tolist())
    return found


def greedily(model: Any, ids: list[int], count: int) -> list[int]:
    """No cache, no padding: one plain pass a token."""
    row = list(ids)
    for _ in range(count):
        with torch.no_grad():
            row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
    return row[len(ids) :]


# -- Most probable tokens -------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_texts_that_share_passes_get_the_tokens_of_plain_ones(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plainly(model, ASKED)
    assert len({token for row in expected for token in row}) > 5, "else they could hardly differ"
    found = Passes(TOK)
    assert found.most_probable(model, ASKED) == expected, "padded"
    assert found.most_probable(model, ASKED, one_by_one=True) == expected
    assert found.most_probable(Wrapper(model), ASKED) == expected
    monkeypatch.setattr(passes, "TREE_TOKENS", 18)
    assert max(map(len, IDS)) <= 18 < sum(map(len, IDS))
    assert found.most_probable(model, ASKED) == expected, "in trees, where the model takes them"


def test_trees_share_beginnings_and_models_that_cannot_take_them_are_found_out(
    llama: Any,
) -> None:
    whole = list(trees(ASKED, 256))
    assert len(whole) == 1
    beginnings = {tuple(ids[:n]) for ids in IDS for n in range(1, len(ids) + 1)}
    assert len(whole[0].ids) == len(beginnings) < sum(map(len, IDS))
    for i, path in whole[0].paths.items():
        assert [whole[0].ids[t] for t in path] == IDS[i]
        assert [whole[0].depths[t] for t in path] == list(range(len(IDS[i])))
    parts = list(trees(ASKED, 18))
    assert len(parts) > 1
    assert all(len(tree.ids) <= 18 for tree in parts)
    assert sorted(i for tree in parts for i in tree.paths) == list(range(len(IDS)))

    assert passes._takes_trees(llama)
    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=420, hidden_size=32, state_size=4, num_hidden_layers=2)
    )
    assert not passes._takes_trees(mamba.eval()), "it has no attention to mask"


def test_the_vocabulary_is_asked_at_targets_only(llama: Any) -> None:
    rows: list[int] = []
    handle = llama.lm_head.register_forward_hook(
        lambda _, __, logits: rows.append(logits.shape[:-1].numel())
    )
    Passes(TOK).most_probable(llama, ASKED)
    handle.remove()
    assert sum(rows) == sum(len(text.ids) - text.first for text in ASKED)


def test_a_text_longer_than_the_context_keeps_its_end(llama: Any) -> None:
    ids = TOK(" ".join(TEXT))["input_ids"]
    limit = llama.config.max_position_embeddings
    assert len(ids) > limit
    found = Passes(TOK).most_probable(llama, [Asked(ids, len(ids) - 2)])
    assert found == plainly(llama, [Asked(ids[-limit:], limit - 2)])
    assert Passes(TOK).generate(llama, [ids], 8) == Passes(TOK).generate(llama, [ids[-56:]], 8)


def test_batches_hold_texts_of_about_equal_length(llama: Any) -> None:
    rows = [[1] * n for n in [30, 3, 4, 3, 30, 5, 30]]
    batches = list(Passes(TOK)._batches(llama, rows))
    assert batches == [[1, 3, 2, 5], [0, 4, 6]]
    assert list(Passes(TOK, 60)._batches(llama, rows)) == [[1, 3, 2, 5], [0, 4], [6]]
    assert list(Passes(TOK)._batches(llama, rows, one_by_one=True)) == [
        [1], [3], [2], [5], [0], [4], [6],
    ]  # fmt: skip
    assert len(list(Passes(TOK)._batches(llama, rows, more=16))) == 1, "passes of their own cost 17"


# -- Generated texts ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_generated_texts_are_those_of_plain_greedy_passes(model: Any) -> None:
    expected = [passes.said(TOK.decode(greedily(model, ids, 6))) for ids in IDS]
    assert len(set(expected)) > 3
    assert Passes(TOK).generate(model, IDS, 6, one_by_one=True) == expected
    if model.config.model_type != "mamba":  # its states see padding on the left
        assert Passes(TOK).generate(model, IDS, 6) == expected
        assert Passes(TOK).generate(Wrapper(model), IDS, 6) == expected


class WithContext(Wrapper):
    """Puts a text before each prompt, as methods do that edit by context."""

    context = TOK("Is it so? Yes! Now")["input_ids"]

    def generate(self, **inputs: Any) -> torch.Tensor:
        input_ids, attention_mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        before = torch.tensor([self.context] * len(input_ids))
        ids = torch.cat([before, input_ids], 1)
        mask = torch.cat([torch.ones_like(before), attention_mask], 1)
        output = self.model.generate(input_ids=ids, attention_mask=mask, **inputs)
        return torch.cat([input_ids, output[:, ids.shape[1] :]], 1)


def test_what_a_method_puts_before_a_prompt_does_not_stop_the_text(llama: Any) -> None:
    asked = [ids for ids in IDS if len(ids) > 1]
    expected = Passes(TOK).generate(llama, [WithContext.context + ids for ids in asked], 8, True)
    found = Passes(TOK).generate(WithContext(llama), asked, 8, one_by_one=True)
    assert found == expected and max(len(TOK(text)["input_ids"]) for text in found) > 2


def test_the_models_own_generation_settings_do_not_matter(llama: Any) -> None:
    expected = Passes(TOK).generate(llama, IDS, 8)
    before = llama.generation_config.to_dict()
    llama.generation_config.update(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0, no_repeat_ngram_size=1
    )
    try:
        assert Passes(TOK).generate(llama, IDS, 8) == expected
    finally:
        llama.generation_config.update(**before)


# -- Plain text -----------------------------------------------------------------------------------


def test_the_likelihood_is_that_of_plain_passes(llama: Any) -> None:
    total, count = 0.0, 0
    for ids in IDS:
        with torch.no_grad():
            log_p = llama(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(float(log_p[t - 1, ids[t]]) for t in range(1, len(ids)))
        count += len(ids) - 1
    found = Passes(TOK).negative_log_likelihood(llama, IDS)
    assert found[1] == count
    assert found[0] == pytest.approx(total, rel=1e-5)
    assert math.isfinite(total)


def test_padding_goes_to_the_side_that_is_asked_for() -> None:
    ids, mask = padded([[7, 8], [9]], "left")
    assert ids.tolist() == [[7, 8], [0, 9]] and mask.tolist() == [[1, 1], [0, 1]]
    ids, mask = padded([[7, 8], [9]], "right")
    assert ids.tolist() == [[7, 8], [9, 0]] and mask.tolist() == [[1, 1], [1, 0]]
