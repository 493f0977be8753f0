from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig

from easyedit_dafnet.language_model import (
    LanguageModel,
    Text,
    inference_mode_of,
    target_logits,
    texts_of,
)
from easyedit_dafnet.records import IGNORE, TokenBatch, encode_targets
from tests.conftest import Subject
from tests.tiny import ARCHITECTURES, LLAMA_MODULES, REQUESTS, architecture, tiny_llama


def requests_of(subject: Subject) -> TokenBatch:
    return encode_targets(
        subject.tok, [r["prompt"] for r in REQUESTS], [r["target_new"] for r in REQUESTS]
    )


def plain_logits(model: Any, texts: list[Text]) -> torch.Tensor:
    """Each text alone through the whole model; rows of its targets."""
    with torch.no_grad():
        return torch.cat([model(t.ids[None]).logits[0][t.labels != IGNORE] for t in texts])


def test_inference_mode_gives_every_module_its_own_mode_back(subject: Subject) -> None:
    model = subject.model()
    model.train()
    resting, frozen = model.get_submodule(subject.modules[0]), next(model.parameters())
    resting.eval()
    frozen.requires_grad_(False)
    with inference_mode_of(model):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
    assert [m for m in model.modules() if not m.training] == [resting]
    assert [id(p) for p in model.parameters() if not p.requires_grad] == [id(frozen)]


def test_modes_come_back_when_setting_them_is_interrupted(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = subject.model().train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)

    def interrupted() -> None:
        next(model.children()).train(False)
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "eval", interrupted)
    with pytest.raises(KeyboardInterrupt), inference_mode_of(model):
        pass
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_texts_are_the_rows_without_padding(subject: Subject) -> None:
    batch = requests_of(subject)
    texts = texts_of(batch)
    assert [len(t) for t in texts] == batch.attention_mask.sum(1).tolist()
    expected = [subject.tok(f"{r['prompt']} {r['target_new']}")["input_ids"] for r in REQUESTS]
    assert [t.ids.tolist() for t in texts] == expected
    assert all(t.target_labels.tolist() == t.ids.tolist()[-len(t.target_labels) :] for t in texts)


def test_logits_at_the_targets_are_those_of_the_whole_model(subject: Subject) -> None:
    model, batch = subject.model(), requests_of(subject)
    with torch.no_grad():
        found = target_logits(model, batch, {})
        rows = model(batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(found, rows[batch.targets])
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_texts_that_share_a_pass_from_the_first_edited_layer_do_not_meet(subject: Subject) -> None:
    model = subject.model()
    language_model = LanguageModel(model, subject.modules)
    assert language_model.split and language_model.first == 1
    texts = texts_of(requests_of(subject))
    split = language_model.with_hidden(texts)
    assert all(t.hidden is not None and len(t.hidden) == len(t) for t in split)
    expected = plain_logits(model, texts)
    with torch.no_grad():
        for given in (split, texts):  # from the kept hidden states, from the start
            packs = list(language_model.packs(given, 3))
            assert [len(p) for p in packs] == [3, 3, 1]
            found = torch.cat([language_model.logits(pack) for pack in packs])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # One text alone, too, and the model computes as before afterwards.
    torch.testing.assert_close(
        language_model.logits(split[:1]), plain_logits(model, texts[:1]), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(plain_logits(model, texts), expected)
    assert all("forward" not in vars(block) for block in language_model.blocks)


def test_hidden_states_are_computed_below_the_first_edited_layer_only(subject: Subject) -> None:
    model = subject.model()
    language_model = LanguageModel(model, subject.modules)
    ran: list[int] = []
    for i, block in enumerate(language_model.blocks):
        attention = next(m for n, m in block.named_children() if "attn" in n)
        attention.register_forward_hook(lambda *_, i=i: ran.append(i))
    (text,) = language_model.with_hidden(texts_of(requests_of(subject))[:1])
    assert ran == [0]
    ran.clear()
    with torch.no_grad():
        language_model.logits([text])
    assert ran == [1, 2]
    for largest in (10**9, 0):
        language_model.largest_predictions = largest
        kept = language_model.with_unedited([text])
        ran.clear()
        language_model.unedited_log_probs(kept)
        assert ran == []


def test_the_last_layers_mlp_sees_the_targets_only(subject: Subject) -> None:
    model = subject.model()
    language_model = LanguageModel(model, subject.modules)
    assert language_model.trimmed is language_model.blocks[-1].mlp
    lengths: list[int] = []
    edited = model.get_submodule(subject.modules[-1])
    edited.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    texts = language_model.with_hidden(texts_of(requests_of(subject)))[:3]
    tokens, targets = sum(map(len, texts)), sum(len(t.target_labels) for t in texts)
    expected = plain_logits(model, texts)
    lengths.clear()
    with torch.no_grad():
        for trim, seen in ((True, targets), (False, tokens)):
            found = language_model.logits(texts, trim=trim)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert lengths.pop() == seen
    assert targets < tokens
    # Nothing to trim where the last layer is not edited, or not in its MLP alone.
    assert LanguageModel(model, subject.modules[:1]).trimmed is None
    attention = next(n for n, m in model.named_modules() if n.endswith(("o_proj", "c_proj")))
    both = [attention.replace(".0.", ".2."), *subject.modules]
    assert LanguageModel(model, both).trimmed is None


def test_a_part_that_mixes_tokens_is_not_trimmed(subject: Subject) -> None:
    model = subject.model()
    mlp = LanguageModel(model, subject.modules).trimmed
    assert mlp is not None
    mlp.register_forward_hook(lambda _, __, y: y + y.cumsum(1))
    language_model = LanguageModel(model, subject.modules)
    assert language_model.trimmed is None


@pytest.mark.parametrize("split", [True, False])
def test_unedited_predictions_are_kept_or_made_from_hidden_states(
    subject: Subject, split: bool
) -> None:
    model = subject.model()
    texts = texts_of(requests_of(subject))
    language_model = LanguageModel(model, subject.modules)
    language_model.split = split
    assert language_model.largest_predictions > 0, "on a CPU"
    language_model.largest_predictions = 2 * 420 * 4  # bytes: two targets
    kept = language_model.with_unedited(language_model.with_hidden(texts), size=1)
    for text in kept:
        targets = len(text.target_labels)
        predicted, hidden = text.log_probs, text.final
        assert (predicted is None) == (targets > 2) and (hidden is None) == (targets <= 2)
    assert {t.log_probs is None for t in kept} == {True, False}
    found = language_model.unedited_log_probs(kept)
    expected = plain_logits(model, texts).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_parameters_given_take_the_place_of_the_models_own(subject: Subject) -> None:
    model = subject.model()
    language_model = LanguageModel(model, subject.modules)
    texts = texts_of(requests_of(subject))
    name = f"{subject.modules[-1]}.weight"
    changed = model.get_parameter(name).detach() * 2
    with torch.no_grad():
        found = language_model.logits(language_model.with_hidden(texts), {name: changed})
        model.get_parameter(name).copy_(changed)
    torch.testing.assert_close(found, plain_logits(model, texts), rtol=1e-4, atol=1e-5)


def test_packs_are_no_longer_than_the_context(subject: Subject) -> None:
    language_model = LanguageModel(subject.model(), subject.modules)
    assert language_model.max_tokens == 64
    ids = torch.arange(30)
    texts = [Text(ids, ids)] * 5
    assert [len(p) for p in language_model.packs(texts, 100)] == [2, 2, 1]
    language_model.split = False
    assert [len(p) for p in language_model.packs(texts, 100)] == [1] * 5


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_architectures_give_the_logits_of_a_plain_run(name: str, attention: str) -> None:
    model, module = architecture(name, attention)
    language_model = LanguageModel(model, [module])
    takes_positions = name not in {"opt", "bloom"}
    assert language_model.split or not takes_positions
    texts = [Text(torch.arange(1, n), torch.arange(2, n + 1)) for n in (9, 4, 14)]
    given = language_model.with_hidden(texts)
    with torch.no_grad():
        packs = language_model.packs(given, 100)
        found = torch.cat([language_model.logits(pack) for pack in packs])
    expected = torch.cat([model(t.ids[None]).logits[0] for t in texts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    log_probs = expected.log_softmax(-1)
    for largest in (10**9, 0):
        language_model.largest_predictions = largest
        kept = language_model.with_unedited(given)
        unedited = language_model.unedited_log_probs(kept)
        torch.testing.assert_close(unedited, log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "gemma2"])
def test_texts_longer_than_the_window_of_attention_pass_alone(name: str) -> None:
    model, module = architecture(name, "sdpa", sliding_window=10, use_sliding_window=True)
    language_model = LanguageModel(model, [module])
    assert language_model.split and language_model.window == 10
    texts = [Text(torch.arange(1, n), torch.arange(2, n + 1)) for n in (9, 4, 31, 6, 8, 25, 10)]
    given = language_model.with_hidden(texts)
    packs = list(language_model.packs(given, 100))
    assert [len(pack) for pack in packs] == [2, 1, 2, 1, 1]
    with torch.no_grad():
        found = torch.cat([language_model.logits(pack) for pack in packs])
    expected = torch.cat([model(t.ids[None]).logits[0] for t in texts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_texts_that_are_together_too_long_share_no_pass(subject: Subject) -> None:
    model = subject.model()
    language_model = LanguageModel(model, subject.modules)
    texts = [Text(torch.arange(n) % 420, torch.arange(n) % 420) for n in (60, 50, 64, 7, 9)]
    given = language_model.with_hidden(texts)
    with torch.no_grad():
        found = torch.cat([language_model.logits(p) for p in language_model.packs(given, 9)])
    torch.testing.assert_close(found, plain_logits(model, texts), rtol=1e-4, atol=1e-5)


def test_a_layer_that_refuses_the_mask_is_not_split(subject: Subject) -> None:
    model = subject.model()

    def refuse(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        if any(tensor.ndim == 4 for tensor in given):
            raise RuntimeError("expected condition to be a boolean tensor")

    block = LanguageModel(model, subject.modules).blocks[1]
    attention = next(m for n, m in block.named_children() if "attn" in n)
    attention.register_forward_pre_hook(refuse, with_kwargs=True)
    assert not LanguageModel(model, subject.modules).split


def test_a_model_that_cannot_be_split_runs_text_by_text(caplog: pytest.LogCaptureFixture) -> None:
    config = MambaConfig(vocab_size=420, hidden_size=32, state_size=4, num_hidden_layers=3)
    model: Any = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    language_model = LanguageModel(model, ["backbone.layers.1.mixer.out_proj"])
    assert not language_model.split
    assert "Training runs every text alone" in caplog.text and "MambaForCausalLM" in caplog.text
    texts = [Text(torch.arange(1, n), torch.arange(2, n + 1)) for n in (9, 4)]
    given = language_model.with_unedited(language_model.with_hidden(texts))
    with torch.no_grad():
        found = torch.cat([language_model.logits(p) for p in language_model.packs(given, 8)])
    expected = torch.cat([model(t.ids[None]).logits[0] for t in texts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    unedited = language_model.unedited_log_probs(given)
    torch.testing.assert_close(unedited, expected.log_softmax(-1), rtol=1e-4, atol=1e-5)


def test_layers_that_do_not_keep_to_their_input_are_found_out(subject: Subject) -> None:
    """A layer that reads what an earlier one left behind cannot start in the middle."""
    model = subject.model()
    seen: list[torch.Tensor] = []
    first, last = LanguageModel(model, subject.modules).blocks[::2]
    attention = next(m for n, m in first.named_children() if "attn" in n)
    attention.register_forward_hook(lambda _, __, output: seen.append(output[0]))

    def add(_: Any, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> Any:
        return (args[0] + 3 * seen[-1], *args[1:]), kwargs

    last.register_forward_pre_hook(add, with_kwargs=True)
    assert not LanguageModel(model, subject.modules).split


def test_half_precision_models_are_split_too(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "tiny-llama")
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
    language_model = LanguageModel(model, LLAMA_MODULES)
    assert language_model.split
    texts = [Text(torch.arange(1, n), torch.arange(2, n + 1)) for n in (9, 4)]
    with torch.no_grad():
        found = language_model.logits(language_model.with_hidden(texts))
    expected = torch.cat([model(t.ids[None]).logits[0] for t in texts])
    # bfloat16 keeps 8 bits; the logits here are up to about 3.
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.1)
