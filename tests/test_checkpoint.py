from __future__ import annotations

import json
import math
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from easyedit_dafnet.archive import read_archive
from easyedit_dafnet.checkpoint import (
    CheckpointError,
    dafnet_for,
    describe_base_model,
    import_released_checkpoint,
    load_dafnet,
    save_dafnet,
)
from easyedit_dafnet.dafnet import DAFNet
from easyedit_dafnet.dafnet_hparams import (
    DAFNetHyperParams,
    NetworkSizes,
    SettingsError,
    shipped,
)
from easyedit_dafnet.dafnet_main import apply_dafnet_to_model
from easyedit_dafnet.files import OutputError
from easyedit_dafnet.signals import EditSignals, find_modules
from tests.tiny import GPT2_MODULES, LLAMA_MODULES, REQUESTS, tiny_gpt2, tiny_llama, tokenizer

SIZES: dict[str, Any] = {
    "layer_n": 2,
    "inner_att_dim": 12,
    "ffn_dim": 20,
    "outer_att_dim": 8,
    "outer_att_head_n": 2,
    "outer_score_att_dim": 4,
    "outer_score_att_head_n": 3,
}
TOK = tokenizer()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def random_dafnet(model: Any, modules: list[str], seed: int = 0, **settings: Any) -> DAFNet:
    torch.manual_seed(seed)
    return DAFNet(find_modules(model, modules), NetworkSizes(**SIZES), edit_lr=0.1, **settings)


@pytest.fixture
def archive(llama: Path, tmp_path: Path) -> Path:
    model = load(llama)
    dafnet = random_dafnet(model, LLAMA_MODULES)
    base = describe_base_model(model, "tiny-llama", dafnet.edited)
    return save_dafnet(dafnet, tmp_path / "archive", base, {"seed": 7})


def settings(path: Path, **changed: Any) -> DAFNetHyperParams:
    values: dict[str, Any] = {
        "model_name": "tiny-llama",
        "inner_params": LLAMA_MODULES,
        "archive": str(path),
        "device": "cpu",
        **SIZES,
        **changed,
    }
    return DAFNetHyperParams(**values)


# ---- our own checkpoints ------------------------------------------------------------------------


def test_what_is_saved_is_loaded_bit_for_bit(llama: Path, tmp_path: Path) -> None:
    model = load(llama)
    dafnet = random_dafnet(
        model, LLAMA_MODULES, edit_bias=False, train_fusion=False, fusion_order="released"
    )
    dafnet.update_statistics(
        [_signals(m.d_in, m.d_out) for m in dafnet.edited]  # the statistics are saved too
    )
    path = save_dafnet(dafnet, tmp_path / "a" / "b", {"name": "tiny"}, {"seed": 7})
    loaded = load_dafnet(path)
    assert loaded.edited == dafnet.edited and loaded.sizes == dafnet.sizes
    assert (loaded.edit_bias, loaded.train_fusion) == (False, False)
    assert (loaded.fusion_order, loaded.base_model) == ("released", {"name": "tiny"})
    expected, got = dafnet.state_dict(), loaded.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[k], got[k]) and expected[k].dtype == got[k].dtype for k in got)
    assert int(got["networks.(32, 48).norm.count"]) == 4 * 5
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert json.loads((path / "config.json").read_text())["training"] == {"seed": 7}


def test_matrices_may_be_saved_in_half_precision(llama: Path, tmp_path: Path) -> None:
    dafnet = random_dafnet(load(llama), LLAMA_MODULES)
    dafnet.update_statistics([_signals(m.d_in, m.d_out) for m in dafnet.edited])
    whole = save_dafnet(dafnet, tmp_path / "whole", {})
    half = save_dafnet(dafnet, tmp_path / "half", {}, dtype=torch.float16)
    sizes = [(path / "model.safetensors").stat().st_size for path in (whole, half)]
    assert sizes[1] < 0.7 * sizes[0]
    for name, value in load_dafnet(half).state_dict().items():
        expected = dafnet.state_dict()[name]
        assert value.dtype == expected.dtype
        # 11 bits of the significand, so half of 2^-10 relative, or of the least subnormal
        torch.testing.assert_close(value, expected, rtol=2**-11, atol=2**-25)
        if expected.ndim < 2:  # biases, statistics and step sizes
            assert torch.equal(value, expected)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def _signals(d_in: int, d_out: int) -> EditSignals:
    return EditSignals(torch.randn(5, d_in), torch.randn(5, d_out), torch.tensor([2, 3]))


def test_a_newer_checkpoint_replaces_the_older(archive: Path, llama: Path) -> None:
    before = load_dafnet(archive).state_dict()
    newer = random_dafnet(load(llama), LLAMA_MODULES, seed=1)
    save_dafnet(newer, archive, load_dafnet(archive).base_model)
    after = load_dafnet(archive).state_dict()
    assert not torch.equal(
        before["networks.(32, 48).layers.0.f1.weight"],
        after["networks.(32, 48).layers.0.f1.weight"],
    ), "loaded once per process, but not when the file has changed"
    assert all(torch.equal(after[k], v) for k, v in newer.state_dict().items())
    assert [p.name for p in archive.parent.iterdir()] == [archive.name], "nothing is left over"


def test_a_folder_with_other_content_is_not_replaced(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"it holds thesis.tex.* and is not a trained DAFNet"):
        save_dafnet(load_dafnet(archive), tmp_path / "mine", {})
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"type": "gpt2"}, "it was 'llama', now it is 'gpt2'"),
        ({"fingerprint": {LLAMA_MODULES[0]: 1.5}}, f"norm of {LLAMA_MODULES[0]} was .*, now it is"),
        ({"fingerprint": {"other": 1.5}}, "for other modules"),
        ({"fingerprint": {}}, "for other modules"),
    ],
)
def test_the_dafnet_of_another_model_is_not_replaced(
    archive: Path, changed: dict[str, Any], difference: str
) -> None:
    dafnet, before = load_dafnet(archive), files_of(archive)
    with pytest.raises(OutputError, match=f"another language model .*{difference}"):
        save_dafnet(dafnet, archive, {**dafnet.base_model, **changed})
    assert files_of(archive) == before
    save_dafnet(dafnet, archive, {**dafnet.base_model, "name": "moved"})


def change(archive: Path, **values: Any) -> None:
    """Other values in config.json; None leaves the key out."""
    content = json.loads((archive / "config.json").read_text()) | values
    content = {name: value for name, value in content.items() if value is not None}
    (archive / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 50,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        b"[" * 100_000,
        b"[]",
        b"\xff\xfe{",
        None,  # the last hundred bytes are missing
    ],
)
def test_damaged_files_are_refused(archive: Path, name: str, content: bytes | None) -> None:
    file = archive / name
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(CheckpointError, match="is damaged or of another version") as error:
        load_dafnet(archive)
    assert str(archive) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "easyedit_dafnet/2"}, "has the format 'easyedit_dafnet/2', of another version"),
        ({"format": None}, "is no DAFNet checkpoint .*its config.json is None"),
        ({"format": ["x"]}, "is no DAFNet checkpoint"),
        ({"format": "book/1"}, "is no DAFNet checkpoint"),
        ({"base_model": None}, "base_model"),
        ({"base_model": []}, "'base_model' is \\[\\]; it must be an object"),
        ({"base_model": {"fingerprint": []}}, "fingerprint of base_model is no object"),
        ({"base_model": {"fingerprint": {"a": "178"}}}, "norm of a in base_model is '178'"),
        ({"sizes": None}, "sizes"),
        ({"sizes": {"ffn_dim": 10**12}}, "'ffn_dim' is 10+; it must be at most"),
        ({"sizes": {**SIZES, "ffn_dim": 21}}, r"is \(20, 80\) in .*, but \(21, 80\) by config"),
        ({"sizes": {**SIZES, "ffn_dim": 10**9}}, "by config.json"),
        ({"sizes": {**SIZES, "ffn_dim": -1}}, "'ffn_dim' is -1"),
        ({"sizes": {"width": 3}}, "width"),
        ({"modules": []}, "it edits no modules"),
        ({"modules": {}}, "'modules' is {}; it must be a list"),
        ({"modules": [{"name": "a"}]}, "d_in"),
        ({"modules": [{"name": "a", "d_in": 0, "d_out": 3, "transposed": True, "has_bias": False}]},
         "shape"),
        ({"modules": [{"name": 1, "d_in": 2, "d_out": 3, "transposed": True, "has_bias": False}]},
         "'name' is 1"),
        ({"edit_bias": "no"}, "'edit_bias' is 'no'; it must be true or false"),
        ({"fusion": "sum"}, "'fusion' is 'sum'"),
        ({"fusion": "least_squares"}, "log_weights is absent in"),
        ({"directions": 1e30}, "'directions' is 1e"),
        ({"d_answer": -1}, "'d_answer' is -1"),
    ],
)  # fmt: skip
def test_values_that_no_dafnet_has_are_refused(
    archive: Path, values: dict[str, Any], message: str
) -> None:
    change(archive, **values)
    with pytest.raises(CheckpointError, match=message) as error:
        load_dafnet(archive)
    assert str(archive) in str(error.value) and "\n" not in str(error.value)


def test_flipped_bits_of_the_networks_are_refused(archive: Path) -> None:
    weights = archive / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2000:-1900] = bytes(255 - byte for byte in content[-2000:-1900])
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not the file that config.json was written with"):
        load_dafnet(archive)


@pytest.mark.parametrize("damage", ["nan", "missing", "one more", "another shape"])
def test_networks_without_a_checksum_are_looked_at_too(archive: Path, damage: str) -> None:
    """As older versions have written them."""
    change(archive, sha256=None)
    weights = archive / "model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(weights).items()}
    load_dafnet(archive)
    if damage == "nan":
        tensors["step_sizes"][1] = math.nan
    elif damage == "missing":
        del tensors["step_sizes"]
    elif damage == "one more":
        tensors["more"] = torch.ones(1)
    else:
        tensors["step_sizes"] = tensors["step_sizes"][:1]
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"step_sizes|more is") as error:
        load_dafnet(archive)
    assert "\n" not in str(error.value)


def test_shipped_networks_have_their_checksums() -> None:
    folders = sorted(shipped("checkpoints").glob("*/"))
    assert len(folders) == 2
    for folder in folders:
        assert read_archive(folder).sha256 is not None


# ---- does it fit? -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"archive": None}, SettingsError, "'archive' is not given"),
        ({"archive": "absent"}, CheckpointError, "'absent' is no DAFNet checkpoint"),
        ({"inner_params": LLAMA_MODULES[:3]}, SettingsError, "inner_params do not fit"),
        ({"inner_params": LLAMA_MODULES[::-1]}, SettingsError, "inner_params do not fit"),
        ({"ffn_dim": 99}, SettingsError, "'ffn_dim' is 99, but the archive .* has 20"),
        ({"norm_layer": "layer"}, SettingsError, "'norm_layer' is layer, but .* has exact"),
        ({"edit_bias": True}, SettingsError, "'edit_bias' is True, but .* trained with False"),
        (
            {"inner_params": ["model.layers.1.mlp.gate_prj"]},
            ValueError,
            "no module 'model.layers.1.mlp.gate_prj'; did you mean 'model.layers.1.mlp.gate_proj'",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(
    archive: Path, llama: Path, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        dafnet_for(load(llama), settings(archive, **changed))
    assert "\n" not in str(caught.value)


def test_a_model_of_other_sizes_is_refused(archive: Path, tmp_path: Path) -> None:
    wider = load(tiny_llama(tmp_path / "wide-llama", intermediate_size=64))
    with pytest.raises(CheckpointError, match=r"of shape \(32, 48\), but this model's is \(32, 64"):
        dafnet_for(wider, settings(archive))


def test_a_model_that_stores_its_weights_otherwise_is_refused(archive: Path, llama: Path) -> None:
    modules = json.loads((archive / "config.json").read_text())["modules"]
    change(archive, modules=[{**module, "transposed": False} for module in modules])
    with pytest.raises(CheckpointError, match="was trained for another layout of"):
        dafnet_for(load(llama), settings(archive))


def test_biases_that_are_not_there_cannot_be_edited(llama: Path, tmp_path: Path) -> None:
    model = load(llama)
    path = save_dafnet(random_dafnet(model, LLAMA_MODULES, edit_bias=True), tmp_path / "a", {})
    with pytest.raises(CheckpointError, match=r"edits biases, but model.layers.1.* has none"):
        dafnet_for(model, settings(path, edit_bias=True))


# ---- the authors' checkpoints -------------------------------------------------------------------


def released_network(d_in: int, d_out: int, modes: int, seen: int) -> dict[str, Tensor]:
    """Random tensors under the names and in the shapes of the authors' state dicts."""
    dim = d_in + d_out
    att = SIZES["outer_att_dim"] * SIZES["outer_att_head_n"]
    score = SIZES["outer_score_att_dim"] * SIZES["outer_score_att_head_n"]
    linear = {
        "inner_att.trans1.0": (SIZES["inner_att_dim"], dim),
        "inner_att.trans1.2": (dim, SIZES["inner_att_dim"]),
        "inner_att.trans2.0": (SIZES["inner_att_dim"], dim),
        "inner_att.trans2.2": (1, SIZES["inner_att_dim"]),
        "outer_att.lq": (att, dim),
        "outer_att.lk": (att, dim),
        "outer_att.lv": (att, dim),
        "outer_att.lo": (dim, att),
        "outer_att_score.lq": (score, dim),
        "outer_att_score.lk": (score, dim),
        "feedforward.fc1": (SIZES["ffn_dim"], dim),
        "feedforward.fc2": (dim, SIZES["ffn_dim"]),
    }
    # Fewer than two tokens seen: their std has stayed at 1, whatever var is.
    var = torch.rand(dim) + 0.1
    state = {
        "norm_layer.mean": torch.randn(dim) * 0.1,
        "norm_layer.var": var,
        "norm_layer.std": var.sqrt() if seen > 1 else torch.ones(dim),
        "norm_layer.k": torch.tensor(seen),
        "norm_layer.eps": torch.tensor(1e-8),
    }
    for layer in range(SIZES["layer_n"]):
        prefix = f"dafnet_model.layers.{layer}."
        for name, (rows, columns) in linear.items():
            state[f"{prefix}{name}.weight"] = torch.randn(rows, columns) / columns**0.5
            state[f"{prefix}{name}.bias"] = torch.randn(rows) * 0.2
        for norm in ("layer_norm1", "layer_norm2", "layer_norm3"):
            state[f"{prefix}{norm}.weight"] = 1 + torch.randn(dim) * 0.1
            state[f"{prefix}{norm}.bias"] = torch.randn(dim) * 0.1
        state[f"{prefix}mode_shift.weight"] = torch.randn(modes, dim) * 0.3
        state[f"{prefix}mode_scale.weight"] = 1 + torch.randn(modes, dim) * 0.3
    return state


def released_checkpoint(
    folder: Path, model: Any, modules: list[str], edit_bias: bool, seen: int = 500
) -> tuple[Path, Path, dict[str, Any]]:
    """A random checkpoint and its configuration as the authors' code writes them."""
    torch.manual_seed(3)
    shapes = [(m.d_in, m.d_out) for m in find_modules(model, modules)]
    networks = {
        f"({d_in}, {d_out})": released_network(d_in, d_out, shapes.count((d_in, d_out)), seen)
        for d_in, d_out in dict.fromkeys(shapes)
    }
    steps = OrderedDict((str(m), torch.tensor(0.02 + 0.01 * m)) for m in range(len(modules)))
    content = {
        "i": 1, "epoch": 1, "loss": 0.5, "edit_lrs": steps, "aux_models": (networks,),
        "aux_models_opt": {}, "edit_lrs_opt": {}, "now_seq_modeling": 1, "ema_loss": 1.0,
        "min_ema_loss": 10, "min_ema_loss_i": 0,
    }  # fmt: skip
    checkpoint, config = folder / "epoch-1-i-1-loss-0.5", folder / "theirs.yaml"
    torch.save(content, checkpoint)
    theirs = {
        "edit_model_name": "tiny",
        "edit_modules": modules,
        "if_edit_bias": edit_bias,
        "gradient_signal_batch_size": 4,
        "aux_model": {**SIZES, "norm_layer": "EBN"},
    }
    config.write_text(yaml.safe_dump(theirs))
    return checkpoint, config, content


def plain_signals(model: Any, request: dict[str, str], names: list[str]) -> dict[str, Tensor]:
    """[x ; delta] of the kept tokens of one edit, [l, D] a module, by plain back-propagation."""
    prompt, text = request["prompt"], f"{request['prompt']} {request['target_new']}"
    ids, start = torch.tensor([TOK(text)["input_ids"]]), len(TOK(prompt)["input_ids"])
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            seen[name] = (args[0][0].detach(), output)

        return hook

    handles = [model.get_submodule(n).register_forward_hook(watch(n)) for n in names]
    log_probs = model(ids).logits[0].log_softmax(-1)
    for handle in handles:
        handle.remove()
    loss = -sum(log_probs[t - 1, ids[0, t]] for t in range(start, ids.shape[1]))
    loss.backward()
    model.zero_grad()
    signals = {}
    for name, (x, output) in seen.items():
        assert output.grad is not None
        kept = [
            torch.cat([x[t], output.grad[0, t]])
            for t in range(len(x))
            if x[t].any() and output.grad[0, t].any()
        ]
        signals[name] = torch.stack(kept)
    return signals


def heads(x: Tensor, n: int) -> list[Tensor]:
    return list(x.chunk(n))


def plain_edits(
    model: Any, modules: list[str], content: dict[str, Any]
) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """Change of weight [d_in, d_out] and bias of each module after each edit, edit by edit."""
    infos = find_modules(model, modules)
    shapes = [m.shape for m in infos]
    past: dict[tuple[str, int], list[Tensor]] = {}
    change = {m.name: torch.zeros(m.d_in, m.d_out).double() for m in infos}
    bias = {m.name: torch.zeros(m.d_out).double() for m in infos}
    history = []
    for request in REQUESTS[:4]:
        signals = plain_signals(model, request, modules)
        for index, m in enumerate(infos):
            state = {k: v.double() for k, v in content["aux_models"][0][m.shape].items()}
            mode = shapes[:index].count(m.shape)
            x = (signals[m.name].double() - state["norm_layer.mean"]) / (
                state["norm_layer.std"] + 1e-8
            )
            fractions = []
            for number in range(SIZES["layer_n"]):
                prefix = f"dafnet_model.layers.{number}."

                def linear(v: Tensor, name: str, p: str = prefix, s: Any = state) -> Tensor:
                    return v @ s[f"{p}{name}.weight"].T + s[f"{p}{name}.bias"]

                def norm(v: Tensor, name: str, p: str = prefix, s: Any = state) -> Tensor:
                    return F.layer_norm(
                        v, v.shape[-1:], s[f"{p}{name}.weight"], s[f"{p}{name}.bias"]
                    )

                a = linear(linear(x, "inner_att.trans1.0").relu(), "inner_att.trans1.2")
                score = linear(linear(a, "inner_att.trans2.0").relu(), "inner_att.trans2.2")
                c = score.softmax(0) * a
                r, x = c.sum(0), norm(x + c, "layer_norm1")
                seen = [*past.setdefault((m.name, number), []), r]
                past[m.name, number] = seen

                n = SIZES["outer_att_head_n"]
                query = heads(linear(r, "outer_att.lq"), n)
                mixed = []
                for h in range(n):
                    keys = torch.stack([heads(linear(q, "outer_att.lk"), n)[h] for q in seen])
                    values = torch.stack([heads(linear(q, "outer_att.lv"), n)[h] for q in seen])
                    weights = (keys @ query[h] / SIZES["outer_att_dim"] ** 0.5).softmax(0)
                    mixed.append(weights @ values)
                x = norm(x + linear(torch.cat(mixed), "outer_att.lo"), "layer_norm2")

                n = SIZES["outer_score_att_head_n"]
                query = heads(linear(r, "outer_att_score.lq"), n)
                own = []
                for h in range(n):
                    keys = torch.stack([heads(linear(q, "outer_att_score.lk"), n)[h] for q in seen])
                    weights = (keys @ query[h] / SIZES["outer_score_att_dim"] ** 0.5).softmax(0)
                    own.append(weights[-1])
                fractions.append(sum(own) / n)

                hidden = linear(x, "feedforward.fc1").relu()
                x = norm(x + linear(hidden, "feedforward.fc2"), "layer_norm3")
                z = x * state[prefix + "mode_scale.weight"][mode]
                x = x + (z + state[prefix + "mode_shift.weight"][mode]).relu()
            u = sum(fractions) / len(fractions)
            eta = content["edit_lrs"][str(index)].double()
            step = torch.zeros_like(change[m.name])
            for token in x:
                step += torch.outer(token[: m.d_in], token[m.d_in :]) * u / len(x)
            change[m.name] = (1 - u) * change[m.name] + eta * step
            bias[m.name] = (1 - u) * bias[m.name] + eta * u * x[:, m.d_in :].mean(0)
        history.append({m.name: (change[m.name], bias[m.name]) for m in infos})
    return history


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("kind", "edit_bias", "seen", "order"),
    [
        ("llama", False, 500, "paper"),
        ("llama", False, 1, "released"),
        ("gpt2", False, 500, "released"),
        ("gpt2", True, 500, "paper"),
    ],
)
def test_an_imported_checkpoint_edits_as_the_equations_say(
    kind: str, edit_bias: bool, seen: int, order: str, tmp_path: Path, request: Any
) -> None:
    folder = request.getfixturevalue(kind)
    modules = LLAMA_MODULES if kind == "llama" else GPT2_MODULES
    model = load(folder)
    originals = {k: v.detach().clone() for k, v in model.named_parameters()}
    checkpoint, config, content = released_checkpoint(tmp_path, model, modules, edit_bias, seen)
    expected = plain_edits(model, modules, content)

    path = import_released_checkpoint(checkpoint, tmp_path / "ours", config, folder, order)
    hparams = DAFNetHyperParams.from_hparams(path)
    assert (hparams.model_name, hparams.signal_batch_size) == (str(folder.resolve()), 4)
    assert (hparams.edit_bias, hparams.fusion_order) == (edit_bias, order)
    for edit, wanted in zip(REQUESTS, expected, strict=False):
        apply_dafnet_to_model(model, TOK, [edit], hparams)
        for name, (weight, bias) in wanted.items():
            change = model.get_parameter(f"{name}.weight").detach() - originals[f"{name}.weight"]
            assert relative(change.T if kind == "llama" else change, weight) < 1e-4, name
            if kind == "gpt2":
                change = model.get_parameter(f"{name}.bias").detach() - originals[f"{name}.bias"]
                assert relative(change, bias) < 1e-4 if edit_bias else not change.any(), name
    edited = {name for name, p in model.named_parameters() if not torch.equal(p, originals[name])}
    parts = ("weight", "bias") if edit_bias else ("weight",)
    assert edited == {f"{name}.{part}" for name in modules for part in parts}


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_nothing_in_a_checkpoint_is_executed(llama: Path, tmp_path: Path) -> None:
    checkpoint, config, content = released_checkpoint(tmp_path, load(llama), LLAMA_MODULES, False)
    torch.save({**content, "aux_models_opt": Malice(tmp_path / "created")}, checkpoint)
    with pytest.raises(CheckpointError, match="is not a checkpoint of the authors' code") as error:
        import_released_checkpoint(checkpoint, tmp_path / "ours", config, llama)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "created").exists() and not (tmp_path / "ours").exists()
    torch.load(checkpoint, weights_only=False)
    assert (tmp_path / "created").exists(), "the file would have done it"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: [1, 2],
        lambda content: torch.ones(3),
        lambda content: {**content, "edit_lrs": {}},
        lambda content: {**content, "aux_models": torch.ones(3)},
        lambda content: {**content, "aux_models": ({"(32, 48)": {"odd": torch.ones(3)}},)},
        lambda content: {**content, "edit_lrs": {str(m): torch.tensor(math.nan) for m in range(9)}},
    ],
)
def test_other_content_than_the_authors_is_one_sentence(
    llama: Path, tmp_path: Path, damage: Any
) -> None:
    checkpoint, config, content = released_checkpoint(tmp_path, load(llama), LLAMA_MODULES, False)
    torch.save(damage(content), checkpoint)
    with pytest.raises(CheckpointError, match="is not a checkpoint of the authors' code") as error:
        import_released_checkpoint(checkpoint, tmp_path / "ours", config, llama)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"checkpoint": b"no pickle"}, "i-1-loss-0.5 is not a checkpoint of the authors' code"),
        ({"checkpoint": None}, "no file '.*epoch-1-i-1-loss-0.5' to import"),
        ({"config": None}, "no file '.*theirs.yaml' to import"),
        ({"config": b"a: b"}, "theirs.yaml is not a configuration of the authors' code"),
        ({"config": b"["}, "theirs.yaml is not valid YAML"),
        ({"config": b""}, "theirs.yaml is not a configuration of the authors' code"),
        ({"config": b"aux_model: {}\naux_model: {}"}, "the key 'aux_model' of line 2 is there"),
        ({"checkpoint": b""}, "i-1-loss-0.5 is empty"),
        ({"checkpoint": b"version https://git-lfs.github.com/spec/v1\n"}, "git lfs pull"),
        ({"edit_modules": "a"}, "edit_modules is 'a'"),
        ({"edit_modules": []}, r"edit_modules is \[\]"),
        ({"edit_modules": [*LLAMA_MODULES[:2], 3]}, "edit_modules is"),
        ({"if_edit_bias": "no"}, "if_edit_bias is 'no'"),
        ({"aux_model": {"ffn_dim": "wide"}}, "'ffn_dim' is 'wide'"),
        ({"aux_model": {"ffn_dim": 10**12}}, "'ffn_dim' is .*; it must be at most"),
        ({"aux_model": {"ffn_dim": 21}}, "does not fit .*theirs.yaml"),
        ({"aux_model": {"norm_layer": "XX"}}, "is not a configuration of the authors' code"),
        ({"aux_model": {"width": 1}}, "is not a configuration of the authors' code"),
        ({"edit_modules": LLAMA_MODULES[:2]}, "does not fit .*theirs.yaml"),
        ({"aux_model": "abc"}, "is not a configuration of the authors' code"),
        ({"config": "a: ö".encode("latin-1")}, "theirs.yaml is not UTF-8"),
        ({"if_edit_bias": True}, "edits biases .*, but .* has none"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(
    llama: Path, tmp_path: Path, damage: dict[str, Any], message: str
) -> None:
    checkpoint, config, _ = released_checkpoint(tmp_path, load(llama), LLAMA_MODULES, False)
    for key, value in damage.items():
        if key in {"checkpoint", "config"}:
            file = {"checkpoint": checkpoint, "config": config}[key]
            file.unlink()
            if value is not None:
                file.write_bytes(value)
        else:
            theirs = yaml.safe_load(config.read_text())
            theirs[key] = {**theirs[key], **value} if isinstance(value, dict) else value
            config.write_text(yaml.safe_dump(theirs))
    with pytest.raises(CheckpointError, match=message) as error:
        import_released_checkpoint(checkpoint, tmp_path / "ours", config, llama)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_settings_that_would_not_load_are_refused_before_anything_is_written(
    llama: Path, tmp_path: Path
) -> None:
    checkpoint, config, _ = released_checkpoint(tmp_path, load(llama), LLAMA_MODULES, False)
    theirs = yaml.safe_load(config.read_text()) | {"gradient_signal_batch_size": 0}
    config.write_text(yaml.safe_dump(theirs))
    with pytest.raises(SettingsError, match="'signal_batch_size' is 0"):
        import_released_checkpoint(checkpoint, tmp_path / "ours", config, llama)
    assert not (tmp_path / "ours").exists()


def test_an_import_never_takes_the_place_of_a_language_model(llama: Path, tmp_path: Path) -> None:
    checkpoint, config, _ = released_checkpoint(tmp_path, load(llama), LLAMA_MODULES, False)
    mine = tmp_path / "mine"
    shutil.copytree(llama, mine)
    (mine / "notes.txt").write_text("precious")
    before = files_of(mine)
    with pytest.raises(OutputError, match=r"is not empty .* and is not a trained DAFNet"):
        import_released_checkpoint(checkpoint, mine, config, mine)
    with pytest.raises(OutputError, match=r"is not empty .* and is not a trained DAFNet"):
        save_dafnet(random_dafnet(load(llama), LLAMA_MODULES), mine, {})
    assert files_of(mine) == before


def test_a_second_import_takes_the_place_of_the_first_and_keeps_what_is_not_its_own(
    llama: Path, gpt2: Path, tmp_path: Path
) -> None:
    checkpoint, config, _ = released_checkpoint(tmp_path, load(llama), LLAMA_MODULES, False)
    ours = tmp_path / "ours"
    first = import_released_checkpoint(checkpoint, ours, config, llama)
    first.write_text("device: cuda\n")
    (ours / "notes.txt").write_text("precious")
    assert import_released_checkpoint(checkpoint, ours, config, llama) == first
    assert sorted(p.name for p in ours.iterdir()) == [
        "config.json", "dafnet.yaml", "model.safetensors", "notes.txt"
    ]  # fmt: skip
    DAFNetHyperParams.from_hparams(first)
    before = files_of(ours)
    (tmp_path / "other").mkdir()
    others = released_checkpoint(tmp_path / "other", load(gpt2), GPT2_MODULES, False)
    with pytest.raises(OutputError, match=r"trained for another language model .*it was 'llama'"):
        import_released_checkpoint(others[0], ours, others[1], gpt2)
    assert files_of(ours) == before
