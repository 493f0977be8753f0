from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from easyedit_dafnet.dafnet_hparams import (
    DAFNetHyperParams,
    DAFNetTrainingHparams,
    NetworkSizes,
    SettingsError,
    read_settings,
    shipped,
)

MINIMAL: dict[str, Any] = {"model_name": "./models/gpt2", "inner_params": ["h.0.mlp.c_fc.weight"]}
TRAINING = r"these are training settings \(`train` takes them\)"
EDITING = r"these are editing settings \(`edit` takes them\)"
SHIPPED = ["gpt-j-6B", "gpt2-xl", "llama-7b", "smollm2-135m"]


def read(folder: Path, **settings: Any) -> DAFNetHyperParams:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **settings}))
    return DAFNetHyperParams.from_hparams(path)


def test_defaults_and_texts(tmp_path: Path) -> None:
    hparams = read(tmp_path)
    assert (hparams.alg_name, hparams.batch_size) == ("DAFNet", 1)
    assert hparams.inner_params == ["h.0.mlp.c_fc"], ".weight is left out"
    assert hparams.tokenizer_name == hparams.model_name
    assert hparams.network_sizes == NetworkSizes()
    assert read(tmp_path, tokenizer_name="other").tokenizer_name == "other"


def test_the_file_may_be_named_without_its_ending(tmp_path: Path) -> None:
    read(tmp_path)
    assert DAFNetHyperParams.from_hparams(str(tmp_path / "settings")) == read(tmp_path)


def test_a_number_that_yaml_reads_as_text_becomes_one(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("model_name: m\ninner_params: [a]\nlr: 1e-4\nedit_lr: -5e-4\ngrad_clip: 3\n")
    assert yaml.safe_load(path.read_text())["lr"] == "1e-4"
    hparams = DAFNetTrainingHparams.from_hparams(path)
    assert hparams.lr == 1e-4 and hparams.edit_lr == -5e-4
    assert isinstance(hparams.grad_clip, float)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_interval": 0}, "'save_interval' is 0; it must be above zero"),
        ({"val_patience": -1}, "'val_patience' is -1; it must be zero or above"),
        ({"lr_warmup": -1}, "'lr_warmup' is -1; it must be zero or above"),
        ({"lr": 1e9}, "'lr' is 1000000000.0; it must be at most 1000"),
        ({"edit_lr": -1e9}, "'edit_lr' is -1000000000.0; it must be at least -1000"),
        ({"reliability_weight": -1.0}, "'reliability_weight' is -1.0; it must be zero or above"),
        ({"seed": 2**70}, "'seed' is .*; it must be at most"),
        ({"val_seq_lens": [1, 0]}, "'val_seq_lens' is 0; it must be above zero"),
        ({"val_seq_lens": []}, "'val_seq_lens' is empty"),
    ],
)
def test_numbers_of_training_have_limits(settings: dict[str, Any], message: str) -> None:
    assert DAFNetTrainingHparams(**MINIMAL).val_patience == 0, "zero is none of them"
    with pytest.raises(SettingsError, match=message):
        DAFNetTrainingHparams(**MINIMAL, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_m": 3}, "unknown setting 'layer_m'; did you mean 'layer_n'?"),
        ({"layer_n": "two"}, "'layer_n' is 'two'; it must be a whole number"),
        ({"layer_n": 2.5}, "'layer_n' is 2.5; it must be a whole number"),
        ({"layer_n": True}, "'layer_n' is True; it must be a whole number"),
        ({"layer_n": 0}, "'layer_n' is 0; it must be above zero"),
        ({"edit_bias": "yes"}, "'edit_bias' is 'yes'; it must be true or false"),
        (
            {"norm_layer": "EBN"},
            "'norm_layer' is 'EBN'; it must be one of 'exact', 'batch', 'layer'",
        ),
        (
            {"past_dtype": "half"},
            "'past_dtype' is 'half'; it must be one of 'float32', 'bfloat16', 'float16'",
        ),
        ({"inner_params": "a.b"}, "'inner_params' is 'a.b'; it must be a list of a text"),
        ({"inner_params": []}, "'inner_params' is empty"),
        ({"inner_params": ["a.b", "a.b.weight"]}, "'inner_params' names 'a.b' twice"),
        ({"alg_name": "MEND"}, r"these are settings of 'MEND' \(alg_name\), not of DAFNet"),
        ({"alg_name": "dafnet"}, "'alg_name' is 'dafnet'; .* it must be 'DAFNet'"),
        ({"alg_name": None}, "settings of None"),
        ({"margin": 1e30}, "'margin' is 1e\\+30; it must be at most 1000"),
        ({"margin": float("nan")}, "'margin' is nan; it must be a finite number"),
        ({"margin": float("inf")}, "'margin' is inf; it must be a finite number"),
        ({"value_rate": float("-inf")}, "'value_rate' is -inf; it must be a finite number"),
        ({"value_rate": "1e999"}, "'value_rate' is inf; it must be a finite number"),
        ({"rehearsed": -1}, "'rehearsed' is -1; it must be zero or above"),
        (
            {"other_questions": ["{} is", "It is"]},
            "'other_questions' has 'It is'; each must have {}",
        ),
        (
            {"other_questions": ["{} is"], "others_asked": 2},
            "'others_asked' is 2, but 'other_questions' has 1; lower it",
        ),
        ({"ffn_dim": 10**400}, "'ffn_dim' is 10+; it must be at most 1e\\+09"),
        ({"protection": 10**400}, "'protection' is 10+; it must be a number"),
        ({"device": 1.5}, "'device' is 1.5; it must be a whole number or a text"),
    ],
)
def test_wrong_settings_are_named_with_their_file(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")) as error:
        read(tmp_path, **settings)
    assert "settings.yaml: " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("inner_params: [a]\n", "the setting 'model_name' is missing"),
        ("model_name: m\n", "the setting 'inner_params' is missing"),
        ("- a\n- b\n", "must hold settings"),
        ("", "must hold settings"),
        ("model_name: [\n", "is not valid YAML"),
        ("[" * 500, "is not valid YAML: it is nested too deeply"),
        ("model_name: 2024-13-45\n", "is not valid YAML"),
        (
            "model_name: m\ninner_params: [a]\nlayer_n: 1\nlayer_n: 2\n",
            "is not valid YAML: the key 'layer_n' of line 4 is there twice",
        ),
        ("model_name: Modèle\ninner_params: [a]\n".encode("latin-1"), "is not UTF-8"),
        ("model_name: m\n".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match=message) as error:
        DAFNetHyperParams.from_hparams(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_byte_order_mark_and_merged_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("model_name: m\ninner_params: [a]\n", encoding="utf-8-sig")
    assert DAFNetHyperParams.from_hparams(path).model_name == "m"
    path.write_text("a: &a {x: 1}\nb: {<<: *a, x: 2}\n")
    assert read_settings(path) == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    ("cls", "settings", "what"),
    [
        (
            DAFNetHyperParams,
            {"alg": "DAFNET", "lr": 1e-4},
            TRAINING,
        ),
        (DAFNetHyperParams, {"lr": 1e-4}, TRAINING),
        (
            DAFNetTrainingHparams,
            {"alg_name": "DAFNet"},
            EDITING,
        ),
        (
            DAFNetTrainingHparams,
            {"margin": 1.5},
            EDITING,
        ),
        (DAFNetHyperParams, {"alg_name": "ROME", "layers": [5]}, "settings of 'ROME'"),
        (DAFNetTrainingHparams, {"alg_name": "ROME", "layers": [5]}, "settings of 'ROME'"),
        (DAFNetHyperParams, {"alg": "MEND", "rank": 1920}, "settings of 'MEND'"),
        (DAFNetTrainingHparams, {"alg": "MEND", "rank": 1920}, "settings of 'MEND'"),
        (DAFNetTrainingHparams, {"alg": [1]}, r"settings of \[1\]"),
    ],
)
def test_settings_of_another_kind_are_told_from_mistyped_ones(
    tmp_path: Path, cls: Any, settings: dict[str, Any], what: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **settings}))
    with pytest.raises(SettingsError, match=what) as error:
        cls.from_hparams(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(shipped("hparams").rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_files_load_or_are_told_to_be_others(path: Path) -> None:
    for cls in (DAFNetHyperParams, DAFNetTrainingHparams):
        if path.parent == shipped("hparams") / cls.FOLDER:
            cls.from_hparams(path)
        else:
            told = "alg" in read_settings(path) or "alg_name" in read_settings(path)
            with pytest.raises(SettingsError, match="these are" if told else "unknown setting"):
                cls.from_hparams(path)


def test_a_mistyped_shipped_name_gets_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"'DAFNet/lama-7b'.*did you mean 'DAFNet/llama-7b'"):
        DAFNetHyperParams.from_hparams("DAFNet/lama-7b")


@pytest.mark.parametrize("name", ["gpt-j-6B", "gpt2-xl", "llama-7b"])
def test_shipped_settings_load_by_name(name: str) -> None:
    editing = DAFNetHyperParams.from_hparams(f"DAFNet/{name}")
    training = DAFNetTrainingHparams.from_hparams(f"TRAINING/DAFNet/{name}")
    assert DAFNetHyperParams.from_hparams(name) == editing
    assert DAFNetTrainingHparams.from_hparams(name) == training
    assert editing.network_sizes == training.network_sizes == NetworkSizes()
    # EasyEdit's model loader goes by the name.
    family = {"gpt-j-6B": "gpt-j", "gpt2-xl": "gpt2", "llama-7b": "llama"}[name]
    assert family in editing.model_name.lower()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_editing_and_training_settings_agree(name: str) -> None:
    def content(path: str) -> dict[str, Any]:
        return yaml.safe_load((shipped("hparams") / path / f"{name}.yaml").read_text())

    editing, training = content("DAFNet"), content("TRAINING/DAFNet")
    same = {"model_name", "inner_params", "edit_bias", "train_fusion", "fusion_order", "device"}
    for key in same | {f.name for f in fields(NetworkSizes)}:
        assert editing[key] == training[key], key
    assert set(editing) <= {f.name for f in fields(DAFNetHyperParams)}
    assert set(training) <= {f.name for f in fields(DAFNetTrainingHparams)}


def test_an_archive_is_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").touch()
    assert read(tmp_path, archive="mine").archive == str(tmp_path / "mine")
    assert read(tmp_path, archive="absent").archive == "absent", (
        "editing will say that it is missing"
    )


def test_devices() -> None:
    def device(name: int | str) -> torch.device:
        return DAFNetHyperParams(**MINIMAL, device=name).torch_device

    assert device("cpu") == torch.device("cpu")
    with pytest.raises(SettingsError, match="'device' is 'mps', where torch has no segment_reduce"):
        device("mps")


@pytest.mark.parametrize("name", ["gpu", -1, "cuda:x"])
def test_a_device_of_no_kind_is_one_sentence(name: int | str) -> None:
    with pytest.raises(SettingsError, match=f"'device' is {name!r}; it must be 'cpu'"):
        _ = DAFNetHyperParams(**MINIMAL, device=name).torch_device


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("name", [0, "1", "cuda", "cuda:0"])
def test_a_missing_cuda_device_is_one_sentence(name: int | str) -> None:
    with pytest.raises(SettingsError, match="no CUDA device is here; set `device: cpu`") as error:
        _ = DAFNetHyperParams(**MINIMAL, device=name).torch_device
    assert "\n" not in str(error.value)
