from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_dafnet.bench.method import Workbench
from easyedit_dafnet.bench.protocol import start_random_numbers
from easyedit_dafnet.bridge.methods import SecondMoments
from tests.tiny import TEXT, tiny_llama

from .conftest import REQUESTS, Maker, weights, workbench

MODULES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
TOKENS = 600


def plain_moments(bench: Workbench, module: str) -> torch.Tensor:
    """E[x xᵀ], passage by passage with the whole model."""
    model = bench.load_model()
    inputs: list[torch.Tensor] = []
    hook = model.get_submodule(module).register_forward_pre_hook(
        lambda module, args: inputs.append(args[0][0].double())
    )
    left = TOKENS
    for passage in bench.text:
        ids = bench.tok(passage, return_tensors="pt")["input_ids"][:, :left]
        left -= ids.shape[1]
        with torch.no_grad():
            model(ids)
        if left == 0:
            break
    hook.remove()
    x = torch.cat(inputs)
    assert len(x) == TOKENS
    return x.T @ x / TOKENS


def test_the_host_reads_what_a_plain_computation_gives(make: Maker, bench: Workbench) -> None:
    method: Any = make("MEMIT")
    assert [need.state for need in method.needs()] == ["to prepare"]
    method.prepare()
    assert [need.state for need in method.needs()] == ["ready"]
    layer_stats = importlib.import_module("easyeditor.models.rome.layer_stats").layer_stats
    for module in MODULES:
        stat = layer_stats(
            bench.load_model(),
            bench.tok,
            module,
            method.hparams.stats_dir,
            method.hparams.mom2_dataset,
            to_collect=["mom2"],
            sample_size=method.hparams.mom2_n_samples,
            precision=method.hparams.mom2_dtype,
            hparams=method.hparams,
        )
        expected = plain_moments(bench, module)
        torch.testing.assert_close(stat.mom2.moment().double(), expected, rtol=1e-4, atol=1e-6)


def test_made_once_for_all_methods(make: Maker, bench: Workbench) -> None:
    make("MEMIT").prepare()

    def refuse() -> None:
        raise AssertionError("the model is not needed again")

    other = replace(bench, folder=bench.folder.with_name("other"), load_model=refuse)
    rome = make("ROME", other, mom2_adjustment=True)  # layer 1, as one of MEMIT's
    assert [need.state for need in rome.needs()] == ["ready"]
    rome.prepare()
    assert not list(bench.folder.parent.rglob("*.part"))
    assert make("ROME").needs() == []
    # Each method says what its own took, whoever made it.
    memit, used = make("MEMIT").preparation_seconds(), rome.preparation_seconds()
    assert memit and used == pytest.approx(memit / 2)
    assert make("ROME").preparation_seconds() is None


def test_another_text_has_other_files(bench: Workbench) -> None:
    longer = replace(bench, text=[*bench.text, "more"])
    other = replace(bench, text=TEXT[::-1] * 40)
    moments = SecondMoments(bench, MODULES, TOKENS)
    assert SecondMoments(longer, MODULES, TOKENS).dataset == moments.dataset
    assert SecondMoments(other, MODULES, TOKENS).dataset != moments.dataset


def test_long_passages_are_cut(bench: Workbench) -> None:
    whole = replace(bench, text=[" ".join(bench.text)])
    whole.tok.model_max_length = 32
    moments = SecondMoments(whole, MODULES, TOKENS)
    moments.prepare()
    assert moments.need().state == "ready"


def test_too_little_text(make: Maker, bench: Workbench) -> None:
    method = make("MEMIT", replace(bench, text=TEXT))
    [need] = method.needs()
    assert need.state == "missing"
    assert "tokens and 600 are asked for: give a longer text" in need.detail
    with pytest.raises(ValueError, match=r"the plain text has .* tokens and 600 are asked for"):
        method.prepare()
    with pytest.raises(
        ValueError, match=r"100 tokens are too few .* the 48 inputs .* at least 480"
    ):
        make("MEMIT", mom2_n_samples=100).prepare()


def test_rome_uses_them(make: Maker, bench: Workbench) -> None:
    edited = {}
    for adjust in (False, True):
        method = make("ROME", mom2_adjustment=adjust)
        method.prepare()
        start_random_numbers(0)
        method.start(bench.load_model())
        method.edit(REQUESTS[:1])
        edited[adjust] = weights(method.model)
        method.stop()
    name = f"{MODULES[1]}.weight"
    assert not torch.equal(edited[False][name], edited[True][name])


def test_memit_unties_a_tied_model_for_the_stream(make: Maker, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "tied-llama", tie_word_embeddings=True)
    bench = workbench(folder, tmp_path / "prepared" / "tied")
    method = make("MEMIT", bench)
    method.prepare()
    model = bench.load_model()
    unedited = weights(model)
    shared = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is shared
    start_random_numbers(0)
    method.start(model)
    method.edit(REQUESTS)
    assert method.state_bytes() == 0
    changed = {n for n, w in weights(method.model).items() if not torch.equal(w, unedited[n])}
    assert changed == {f"{module}.weight" for module in MODULES}
    method.stop()
    assert model.get_output_embeddings().weight is shared
