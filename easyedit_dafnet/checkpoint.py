"""Trained DAFNets on disk: a folder with config.json and model.safetensors."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .dafnet import DAFNet
from .dafnet_hparams import DAFNetHyperParams, DAFNetTrainingHparams, SettingsError, shipped
from .files import write_text
from .networks import NetworkSizes
from .signals import EditedModule, find_modules

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "easyedit_dafnet/1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which one and why."""


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A fresh folder to write into that takes the place of `path` when the block ends well.

    An older checkpoint there is replaced; a folder with anything else in it is not touched.
    """
    if path.exists() and not (path / CONFIG).is_file() and any(path.iterdir()):
        raise CheckpointError(
            f"{path} exists and is not a DAFNet checkpoint; choose another folder to write to."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        yield fresh
        try:
            if path.exists():
                path.rename(old)
            fresh.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise


def fingerprint(model: torch.nn.Module, modules: list[EditedModule]) -> dict[str, float]:
    """Norm of each edited weight: tells base models apart, whatever their precision."""
    return {
        m.name: round(model.get_parameter(m.weight_name).detach().float().norm().item(), 4)
        for m in modules
    }


def save_dafnet(
    dafnet: DAFNet,
    path: str | Path,
    base_model: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the networks and all that is needed to use them.

    base_model: name, type and fingerprint of the language model. training: settings, seed,
    versions, scores. dtype: of the networks' matrices in the file; statistics are float32.
    """
    path = Path(path)
    config = {
        "format": FORMAT,
        "modules": [asdict(m) for m in dafnet.edited],
        "sizes": asdict(dafnet.sizes),
        "edit_bias": dafnet.edit_bias,
        "train_fusion": dafnet.train_fusion,
        "fusion_order": dafnet.fusion_order,
        "fusion": dafnet.fusion,
        "directions": dafnet.directions,
        "d_answer": dafnet.d_answer,
        "base_model": dict(base_model),
        "training": dict(training or {}),
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in dafnet.state_dict().items()}
    for name, tensor in tensors.items():
        if ".directions_" in name:  # many numbers of which few digits matter
            tensors[name] = tensor.half()
        elif name.startswith("networks.") and tensor.ndim > 1:
            tensors[name] = tensor.to(dtype)
    with replacing_folder(path) as folder:
        save_file(tensors, folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)  # safetensors makes it private, even in a shared folder
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    return path


def load_dafnet(path: str | Path, device: torch.device | str = "cpu") -> DAFNet:
    """Read a checkpoint folder into a DAFNet in evaluation mode, float32, ready to edit with.

    Loaded once per process while the file stays the same. Raises CheckpointError.
    """
    folder = Path(path)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            known = sorted(p.name for p in shipped("checkpoints").glob("*/"))
            raise CheckpointError(
                f"archive: {str(path)!r} is no DAFNet checkpoint ({name} is not there); train one "
                f"with DAFNetTrainer, import one, or use a shipped one ({', '.join(known)})."
            )
    return _load(folder.resolve(), (folder / WEIGHTS).stat().st_mtime_ns, str(device))


@lru_cache(maxsize=2)
def _load(folder: Path, changed: int, device: str) -> DAFNet:
    try:
        config = json.loads((folder / CONFIG).read_text())
        dafnet = DAFNet(
            [EditedModule(**m) for m in config["modules"]],
            NetworkSizes(**config["sizes"]),
            edit_bias=config["edit_bias"],
            train_fusion=config["train_fusion"],
            fusion_order=config["fusion_order"],
            # Older checkpoints know the mean only.
            fusion=config.get("fusion", "mean"),
            directions=config.get("directions", 400),
            d_answer=config.get("d_answer", 0),
        )
        dafnet.load_state_dict(load_file(folder / WEIGHTS))
    except (KeyError, TypeError, ValueError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"archive: {str(folder)!r} is damaged or of another version ({reason}); "
            "train or import it again."
        ) from None
    dafnet.base_model, dafnet.written_at = config["base_model"], changed
    return dafnet.to(device).eval().requires_grad_(False)


def dafnet_for(
    model: torch.nn.Module, hparams: DAFNetHyperParams | DAFNetTrainingHparams
) -> DAFNet:
    """The DAFNet of `hparams.archive`, checked against the settings and the model.

    Raises SettingsError or CheckpointError in one sentence where they do not fit.
    """
    if not hparams.archive:
        raise SettingsError("Setting 'archive' is not given; name the folder of a trained DAFNet.")
    modules = find_modules(model, hparams.inner_params)
    device = model.get_parameter(modules[0].weight_name).device
    dafnet = load_dafnet(hparams.archive, device)
    where = f"archive {hparams.archive!r}"
    trained = [m.name for m in dafnet.edited]
    if trained != hparams.inner_params:
        raise SettingsError(
            f"inner_params do not fit the {where}, which was trained to edit "
            f"{', '.join(trained)} in this order."
        )
    for f in fields(NetworkSizes):
        wanted, has = getattr(hparams, f.name), getattr(dafnet.sizes, f.name)
        if wanted != has:
            raise SettingsError(f"Setting {f.name!r} is {wanted}, but the {where} has {has}.")
    if hparams.edit_bias != dafnet.edit_bias:
        raise SettingsError(
            f"Setting 'edit_bias' is {hparams.edit_bias}, but the {where} was trained with "
            f"{dafnet.edit_bias}."
        )
    for name in ("fusion", "directions") if hparams.fusion == "least_squares" else ("fusion",):
        wanted, has = getattr(hparams, name), getattr(dafnet, name)
        if wanted != has:
            raise SettingsError(f"Setting {name!r} is {wanted!r}, but the {where} has {has!r}.")
    for module, known in zip(modules, dafnet.edited, strict=True):
        if module.shape != known.shape:
            raise CheckpointError(
                f"The {where} was trained for {known.name} of shape {known.shape}, but this "
                f"model's is {module.shape}; use the model it was trained for."
            )
        if dafnet.edit_bias and not module.has_bias:
            raise CheckpointError(
                f"The {where} edits biases, but {module.name} of this model has none."
            )
    dafnet.fusion_order = hparams.fusion_order
    return dafnet


# ---- the authors' checkpoints -------------------------------------------------------------------

# Their names of the parts of a layer, and ours.
RELEASED_LAYER = {
    "inner_att.trans1.0": "intra.w1",
    "inner_att.trans1.2": "intra.w2",
    "inner_att.trans2.0": "intra.v1",
    "inner_att.trans2.2": "intra.v2",
    "outer_att.lq": "inter.query",
    "outer_att.lk": "inter.key",
    "outer_att.lv": "inter.value",
    "outer_att.lo": "inter.out",
    "outer_att_score.lq": "fusion.query",
    "outer_att_score.lk": "fusion.key",
    "feedforward.fc1": "f1",
    "feedforward.fc2": "f2",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "layer_norm3": "norm3",
    "mode_shift": "shift",
    "mode_scale": "scale",
}
# What a file that is no such checkpoint raises while it is read.
DAMAGED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)
RELEASED_NORMS = {"EBN": "exact", "BN": "batch", "LN": "layer"}


def _released_network(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One network's tensors under our names."""
    ours = {}
    for name, tensor in state.items():
        first, rest = name.split(".", 1)
        if first == "norm_layer":
            if rest in {"std", "eps"}:  # std is the root of var, eps is 1e-8 in both
                continue
            ours["norm." + {"k": "count"}.get(rest, rest)] = tensor
        else:
            _, layer, part = rest.split(".", 2)
            part, leaf = part.rsplit(".", 1)
            ours[f"layers.{layer}.{RELEASED_LAYER[part]}.{leaf}"] = tensor
    if int(ours.get("norm.count", 2)) < 2:  # fewer than two tokens: they leave std at 1
        ours["norm.var"] = torch.ones_like(ours["norm.mean"])
    return ours


def import_released_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    config: str | Path,
    model: str | Path,
    fusion_order: str = "paper",
) -> Path:
    """Turn a checkpoint of the authors' code into ours; nothing in it is executed.

    checkpoint: their file; config: their YAML; model: folder of the language model.
    Writes into `out` the checkpoint and dafnet.yaml, editing settings that load as they are, and
    returns the latter's path. Raises CheckpointError or SettingsError.
    """
    from transformers import AutoModelForCausalLM

    out = Path(out)
    for path in (checkpoint, config):
        if not Path(path).is_file():
            raise CheckpointError(f"There is no file {str(path)!r} to import.")
    try:
        theirs = yaml.safe_load(Path(config).read_text())
        sizes = dict(theirs["aux_model"])
        names, edit_bias = theirs["edit_modules"], theirs["if_edit_bias"]
        sizes["norm_layer"] = RELEASED_NORMS[sizes["norm_layer"]]
        released_sizes = NetworkSizes(**sizes)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{config} is not a configuration of the authors' code ({' '.join(str(error).split())})"
            "; it needs edit_modules, if_edit_bias and aux_model."
        ) from None
    try:
        # The file is a pickle: only tensors and plain containers are let in.
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        networks, step_sizes = content["aux_models"], content["edit_lrs"]
        networks = networks[0] if isinstance(networks, tuple) else networks
        state = {"step_sizes": torch.stack([step_sizes[str(m)] for m in range(len(names))])}
        for shape, network in networks.items():
            for name, tensor in _released_network(network).items():
                state[f"networks.{shape}.{name}"] = tensor
    except DAMAGED as error:
        raise CheckpointError(
            f"{checkpoint} is not a checkpoint of the authors' code "
            f"({type(error).__name__}: {str(error).splitlines()[0][:120]})."
        ) from None

    language_model = AutoModelForCausalLM.from_pretrained(model)
    modules = find_modules(language_model, names)
    if edit_bias and (bare := [m.name for m in modules if not m.has_bias]):
        raise CheckpointError(
            f"{config} edits biases (if_edit_bias), but {bare[0]} of {model} has none."
        )
    dafnet = DAFNet(
        modules,
        released_sizes,
        edit_bias=edit_bias,
        train_fusion=False,
        fusion_order="released" if fusion_order == "released" else "paper",
    )
    try:
        dafnet.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint} does not fit {config} and {model}: {' '.join(str(error).split())[:300]}"
        ) from None

    base = describe_base_model(language_model, str(model), modules)
    save_dafnet(dafnet, out, base, {"imported_from": Path(checkpoint).name})
    settings = {
        "alg_name": "DAFNet",
        "model_name": str(Path(model).resolve()) if Path(model).exists() else str(model),
        "archive": str(out.resolve()),
        "device": "cpu",
        "inner_params": [m.weight_name for m in modules],
        **asdict(released_sizes),
        "edit_bias": edit_bias,
        "train_fusion": False,
        "fusion_order": dafnet.fusion_order,
        "signal_batch_size": theirs.get("gradient_signal_batch_size", 8),
    }
    target = out / "dafnet.yaml"
    write_text(target, yaml.safe_dump(settings, sort_keys=False))
    DAFNetHyperParams.from_hparams(target)
    return target


def describe_base_model(model: Any, name: str, modules: list[EditedModule]) -> dict[str, Any]:
    """What a checkpoint remembers of the language model it was trained for."""
    return {
        "name": name,
        "type": model.config.model_type,
        "fingerprint": fingerprint(model, modules),
    }
