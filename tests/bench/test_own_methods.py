from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from easyedit_dafnet.bench import Workbench
from easyedit_dafnet.bench.own_methods import DAFNet, DAFNetStrong, Unedited
from easyedit_dafnet.bench.unedited_model import UneditedModel
from easyedit_dafnet.dafnet_hparams import SettingsError, shipped
from tests.bench.conftest import RECORDS
from tests.conftest import Subject

REQUESTS = [record.request() for record in RECORDS]
# A network small enough for a test, of the published form.
TINY = {
    "inner_params": ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"],
    "layer_n": 1,
    "inner_att_dim": 8,
    "ffn_dim": 8,
    "outer_att_dim": 8,
    "outer_score_att_dim": 4,
    "max_iters": 2,
    "val_interval": 2,
    "passages": None,
}


def test_the_unedited_model_stays_as_it_is(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    bench = workbench(tmp_path)
    method = Unedited(bench, {})
    model = bench.load_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    method.start(model)
    method.edit(REQUESTS)
    assert method.model is model
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_dafnet_edits_with_a_trained_network(
    subjects: Callable[[str], Subject], workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    subject = subjects("llama")
    settings = {**subject.hparams().__dict__, "hparams": "DAFNet/smollm2-135m"}
    method = DAFNet(workbench(tmp_path), settings)
    assert [need.state for need in method.needs()] == ["ready"]
    unedited = UneditedModel(subject.model)
    model = unedited.model
    weight = model.get_parameter(subject.edited[0].weight_name)
    before = weight.clone()
    method.start(model)
    for request in REQUESTS[:3]:
        method.edit([request])
    assert not torch.equal(weight, before)
    held = method.state_bytes()
    method.edit(REQUESTS[3:4])
    per_edit = method.state_bytes() - held
    assert 0 < per_edit < held, "each edit is kept, beside the original weights"
    method.stop()
    assert unedited.put_back() is model, "nothing but weights is left, so it is not loaded afresh"
    assert torch.equal(weight, before)
    method.start(model)
    assert method.state_bytes() == 0, "a new stream starts with nothing"


def test_a_shipped_network_says_how_long_its_training_took(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    method = DAFNet(workbench(tmp_path), {"hparams": "DAFNet/smollm2-135m"})
    card = json.loads((shipped("checkpoints") / "smollm2-135m" / "config.json").read_text())
    assert method.preparation_seconds() == 60 * card["training"]["minutes"] > 0


def test_dafnet_trains_a_network_of_its_own_once(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    settings = {"training": "TRAINING/DAFNet/smollm2-135m-published", **TINY}
    bench = workbench(tmp_path)
    method = DAFNet(bench, settings)
    assert [need.state for need in method.needs()] == ["to prepare"]
    method.prepare()
    again = DAFNet(bench, settings)
    assert [need.state for need in again.needs()] == ["ready"]
    seconds = again.preparation_seconds()
    assert seconds and seconds == method.preparation_seconds()
    archive = Path(again.hparams.archive or "") / "model.safetensors"
    written = archive.stat().st_mtime_ns
    again.prepare()
    assert archive.stat().st_mtime_ns == written, "it is not trained twice"
    model = bench.load_model()
    before = model.get_parameter("model.layers.1.mlp.up_proj.weight").clone()
    again.start(model)
    again.edit(REQUESTS)
    assert not torch.equal(model.get_parameter("model.layers.1.mlp.up_proj.weight"), before)


def test_a_network_of_other_settings_is_not_taken(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    settings = {"training": "TRAINING/DAFNet/smollm2-135m-published", **TINY}
    DAFNet(workbench(tmp_path), settings).prepare()
    other = DAFNet(workbench(tmp_path), {**settings, "edit_lr": 0.5})
    assert [need.state for need in other.needs()] == ["to prepare"]
    with pytest.raises(SettingsError, match="edit_lr"):
        other.prepare()


def test_a_network_of_other_records_is_not_taken(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    settings = {"training": "TRAINING/DAFNet/smollm2-135m-published", **TINY}
    bench = workbench(tmp_path)
    DAFNet(bench, settings).prepare()
    assert [need.state for need in DAFNet(bench, settings).needs()] == ["ready"]
    other = DAFNet(replace(bench, train=bench.train[1:]), settings)
    assert [need.state for need in other.needs()] == ["to prepare"]


def test_training_that_was_interrupted_goes_on(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    bench = workbench(tmp_path)
    settings = {"training": "TRAINING/DAFNet/smollm2-135m-published", **TINY}
    method = DAFNet(bench, settings)
    method.prepare()
    first = method.preparation_seconds()
    (tmp_path / "trained.json").unlink()  # as if it had been stopped before its end was noted
    longer = DAFNet(bench, {**settings, "max_iters": 4})
    assert [need.state for need in longer.needs()] == ["to prepare"]
    longer.prepare()
    log = next(tmp_path.glob("logs/DAFNet/*.jsonl")).read_text().splitlines()
    assert sum('"step": 1,' in line or '"step": 2,' in line for line in log) <= 2 * 2, (
        "the first steps were not done again"
    )
    total = longer.preparation_seconds()
    assert first and total and total > first, "the time of the first part counts"
    assert [need.state for need in longer.needs()] == ["ready"]


def test_what_dafnet_lacks_is_named(workbench: Callable[[Path], Workbench], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no setting 'seq_len'"):
        DAFNet(workbench(tmp_path), {"hparams": DAFNet.shipped, "seq_len": 3})
    (need,) = DAFNet(workbench(tmp_path), {"archive": str(tmp_path / "none")}).needs()
    assert need.state == "missing"


def test_the_published_settings_are_the_papers() -> None:
    """Appendix of the paper and the released code: see DAFNetTrainingHparams."""
    settings = (shipped("hparams") / "TRAINING/DAFNet/smollm2-135m-published.yaml").read_text()
    for line in ("lr: 1e-6", "lr_lr: 1e-4", "edit_lr: 1e-4", "train_fusion: false", "layer_n: 2"):
        assert f"\n{line}\n" in settings


@pytest.mark.parametrize("name", ["llama-smollm2-135m-instruct", "llama-smollm2-135m-instruct-tf4"])
def test_the_strong_form_has_a_name_and_the_shipped_settings(
    name: str, workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    bench = replace(workbench(tmp_path), model_name=str(tmp_path / name))
    strong, published = DAFNetStrong(bench, {}), DAFNet(bench, {})
    named = DAFNet(bench, {"hparams": "DAFNet/smollm2-135m-strong"})
    assert strong.hparams == named.hparams
    assert strong.effective_settings == named.effective_settings != published.effective_settings
    assert strong.hparams.fusion == "least_squares" != published.hparams.fusion
    assert [need.detail for need in strong.needs()] == ["smollm2-135m-strong"]
    assert DAFNetStrong(bench, {"margin": 2.0}).hparams.margin == 2.0


@pytest.mark.parametrize("kind", [DAFNet, DAFNetStrong])
def test_a_model_that_nothing_is_shipped_for_needs_settings_of_its_own(
    kind: type[DAFNet], workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    bench = workbench(tmp_path)
    with pytest.raises(SettingsError, match=rf"^{kind.name} comes with .* none for tiny-llama"):
        kind(bench, {})
    assert kind(bench, {"hparams": kind.shipped}).hparams.model_name == bench.model_name
    training = {"training": "TRAINING/DAFNet/smollm2-135m-strong"}
    trained = kind(bench, training)
    assert [need.state for need in trained.needs()] == ["to prepare"]
    margin = kind(bench, training | {"hparams": DAFNetStrong.shipped}).hparams.margin
    assert (trained.hparams.margin == margin) is (kind is DAFNetStrong)


def test_a_network_trained_here_edits_with_the_editing_settings_named(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    settings = {"training": "TRAINING/DAFNet/smollm2-135m-strong", "max_iters": 7}
    plain = DAFNet(workbench(tmp_path), settings)
    strong = DAFNet(workbench(tmp_path), settings | {"hparams": "DAFNet/smollm2-135m-strong"})
    named = yaml.safe_load((shipped("hparams") / "DAFNet/smollm2-135m-strong.yaml").read_text())
    assert (plain.hparams.margin, strong.hparams.margin) == (1.0, named["margin"])
    assert named["margin"] != 1.0, "else the two could not be told apart"
    assert plain.hparams.archive == strong.hparams.archive != "smollm2-135m-strong"
    assert strong.training is not None and strong.training.max_iters == 7
