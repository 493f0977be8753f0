"""Trained DAFNets on disk: a folder with config.json and model.safetensors."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .archive import (
    ARCHIVE,
    CONFIG,
    FORMAT,
    SETTINGS,
    WEIGHTS,
    ArchiveConfig,
    CheckpointError,
    check_archive_folder,
    damaged,
    digest,
    read_archive,
    read_released_config,
)
from .dafnet import DAFNet
from .dafnet_hparams import (
    DAFNetHyperParams,
    DAFNetTrainingHparams,
    NetworkSizes,
    SettingsError,
    typed,
)
from .files import replacing_folder, save_tensors, write_text
from .signals import EditedModule, find_modules


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
    Raises OutputError where the folder holds something else than a DAFNet of that model.
    """
    path = Path(path)
    check_archive_folder(path, base_model)
    with replacing_folder(path, ARCHIVE) as folder:
        _write_dafnet(dafnet, folder, base_model, training or {}, dtype)
    return path


def _write_dafnet(
    dafnet: DAFNet,
    folder: Path,
    base_model: Mapping[str, Any],
    training: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    tensors = {name: t.detach().cpu().contiguous() for name, t in dafnet.state_dict().items()}
    for name, tensor in tensors.items():
        if ".directions_" in name:  # many numbers of which few digits matter
            tensors[name] = tensor.half()
        elif name.startswith("networks.") and tensor.ndim > 1:
            tensors[name] = tensor.to(dtype)
    save_tensors(tensors, folder / WEIGHTS)
    config = ArchiveConfig(
        format=FORMAT,
        modules=[asdict(m) for m in dafnet.edited],
        sizes=asdict(dafnet.sizes),
        edit_bias=dafnet.edit_bias,
        train_fusion=dafnet.train_fusion,
        fusion_order=dafnet.fusion_order,
        fusion=dafnet.fusion,
        directions=dafnet.directions,
        d_answer=dafnet.d_answer,
        base_model=dict(base_model),
        training=dict(training),
        sha256=digest(folder / WEIGHTS),
    )
    write_text(folder / CONFIG, json.dumps(asdict(config), indent=1) + "\n")


def load_dafnet(path: str | Path, device: torch.device | str = "cpu") -> DAFNet:
    """Read a checkpoint folder into a DAFNet in evaluation mode, float32, ready to edit with.

    Loaded once per process while its files stay the same. Raises CheckpointError.
    """
    folder = Path(path)
    try:
        times = [(folder / name).stat().st_mtime_ns for name in (CONFIG, WEIGHTS)]
    except OSError:
        read_archive(path)  # says what is missing
        raise
    return _load(folder.resolve(), *times, str(device))


@lru_cache(maxsize=2)
def _load(folder: Path, described: int, changed: int, device: str) -> DAFNet:
    config = read_archive(folder)
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes are asked for
            _check_shapes(_built(config), folder / WEIGHTS)
        dafnet = _built(config)
        dafnet.load_state_dict(load_file(folder / WEIGHTS))
        for name, tensor in dafnet.state_dict().items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name} holds numbers that are not finite")
    except (KeyError, TypeError, ValueError, OverflowError, SafetensorError, RuntimeError) as error:
        raise damaged(folder, error) from None
    dafnet.base_model, dafnet.written_at = config.base_model, changed
    return dafnet.to(device).eval().requires_grad_(False)


def _built(config: ArchiveConfig) -> DAFNet:
    """A DAFNet as the archive's, but untrained. Raises ValueError or TypeError."""
    modules = [EditedModule(**m) for m in config.modules]
    for module in modules:
        typed(module)
        if min(module.d_in, module.d_out) < 1:
            raise ValueError(f"{module.name} is of shape {module.shape}")
    return DAFNet(
        modules,
        NetworkSizes(**config.sizes),
        edit_bias=config.edit_bias,
        train_fusion=config.train_fusion,
        fusion_order=config.fusion_order,
        fusion=config.fusion,
        directions=config.directions,
        d_answer=config.d_answer,
    )


def _check_shapes(dafnet: DAFNet, weights: Path) -> None:
    """Raise ValueError for the first tensor that the file lacks, or has in another shape."""
    with safe_open(weights, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    expected = {name: tuple(t.shape) for name, t in dafnet.state_dict().items()}
    for name in expected | found:
        wanted, has = expected.get(name, "absent"), found.get(name, "absent")
        if wanted != has:
            raise ValueError(f"{name} is {has} in {WEIGHTS}, but {wanted} by {CONFIG}")


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
        if module.transposed != known.transposed:
            raise CheckpointError(
                f"The {where} was trained for another layout of {known.name} (torch.nn.Linear "
                "stores its weight transposed, GPT-2's Conv1D does not); use the model it was "
                "trained for."
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
    returns the latter's path. Raises CheckpointError, OutputError or SettingsError.
    """
    from transformers import AutoModelForCausalLM

    out = Path(out)
    theirs, released_sizes = read_released_config(checkpoint, out, config)
    names, edit_bias = theirs["edit_modules"], theirs["if_edit_bias"]
    try:
        # The file is a pickle: only tensors and plain containers are let in.
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        networks, step_sizes = content["aux_models"], content["edit_lrs"]
        networks = networks[0] if isinstance(networks, tuple) else networks
        state = {"step_sizes": torch.stack([step_sizes[str(m)] for m in range(len(names))])}
        for shape, network in networks.items():
            for name, tensor in _released_network(network).items():
                state[f"networks.{shape}.{name}"] = tensor
        for name, tensor in state.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name} holds numbers that are not finite")
    except DAMAGED as error:
        reason = "".join(str(error).splitlines()[:1])  # torch says more than one needs
        raise CheckpointError(
            f"{checkpoint} is not a checkpoint of the authors' code "
            f"({type(error).__name__}: {reason[:120]})."
        ) from None

    try:
        language_model = AutoModelForCausalLM.from_pretrained(model)
    except (OSError, ValueError, SafetensorError) as error:
        reason = "".join(str(error).splitlines()[:1])[:200]
        raise CheckpointError(f"The language model {model} cannot be loaded: {reason}") from None
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
    check_archive_folder(out, base)
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
    DAFNetHyperParams(**settings)  # whether they are in order
    with replacing_folder(out, ARCHIVE) as folder:
        _write_dafnet(dafnet, folder, base, {"imported_from": Path(checkpoint).name})
        write_text(folder / SETTINGS, yaml.safe_dump(settings, sort_keys=False))
    return out / SETTINGS


def describe_base_model(model: Any, name: str, modules: list[EditedModule]) -> dict[str, Any]:
    """What a checkpoint remembers of the language model it was trained for."""
    return {
        "name": name,
        "type": model.config.model_type,
        "fingerprint": fingerprint(model, modules),
    }
