"""The authors' released code, run as it is from where the user has put it.

All that is known of it is in this module. It is imported from the given folder, nothing of it is
replaced. Not part of a step: its tokenising, its data thread and its log files; what that thread
computes on the language model (signals, unedited logits of the locality texts) is part of it.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.speed.setting import Record, Setting, StepBatch
from easyedit_dafnet.checkpoint import RELEASED_LAYER
from easyedit_dafnet.dafnet import DAFNet
from easyedit_dafnet.language_model import Text
from easyedit_dafnet.networks import ExactNorm
from easyedit_dafnet.records import IGNORE

PAST_AT_ONCE = 256  # random past edits drawn; they repeat beyond
PACKAGES = ("editors", "utils")  # its top-level names


class AuthorsCodeError(RuntimeError):
    """The authors' code cannot be used; the message says why."""


@contextmanager
def _importable(path: Path) -> Iterator[None]:
    """Its packages can be imported within the block; afterwards the names are free again."""

    def taken() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] in PACKAGES]

    others = {name: sys.modules.pop(name) for name in taken()}
    no_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(path))
    try:
        yield
    finally:
        sys.path.remove(str(path))
        sys.dont_write_bytecode = no_bytecode
        for name in taken():
            del sys.modules[name]
        sys.modules.update(others)


def load_package(path: Path) -> Any:
    """Their module editors.dafnet. Raises AuthorsCodeError in one sentence."""
    if not (path / "editors" / "dafnet" / "dafnet.py").is_file():
        raise AuthorsCodeError(
            f"{path} is not the authors' code (there is no editors/dafnet/dafnet.py); give the "
            "folder of a clone of qizhou000/DAFNet."
        )
    with _importable(path.resolve()):
        try:
            return importlib.import_module("editors.dafnet")
        except ModuleNotFoundError as error:
            raise AuthorsCodeError(
                f"The authors' code imports {error.name!r}, which is not here: install it."
            ) from None


def _our_name(name: str) -> str:
    """dafnet_model.layers.0.inner_att.trans1.0.weight -> layers.0.intra.w1.weight"""
    _, _, layer, part = name.split(".", 3)
    part, leaf = part.rsplit(".", 1)
    return f"layers.{layer}.{RELEASED_LAYER[part]}.{leaf}"


def _xym(texts: list[Text]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels and mask as they have them: without the last token, which predicts nothing."""
    ids = pad_sequence([text.ids[:-1] for text in texts], True)
    labels = pad_sequence([text.labels[:-1] for text in texts], True, IGNORE)
    mask = (labels != IGNORE).long()
    return ids, labels * mask, mask


class Reference:
    """Their editor for the setting's language model, with our networks' weights in it.

    model: the language model to edit, else one is loaded; theirs makes a copy of it for itself.
    """

    def __init__(self, setting: Setting, size: str, dafnet: DAFNet, model: Any = None) -> None:
        package, config = load_package(setting.options.reference), setting.config
        device = str(setting.device)
        sizes = asdict(setting.sizes(size)) | {"norm_layer": "EBN"}
        kind = package.DAFNetConfig
        try:
            settings = kind(
                edit_model_name="benchmark",
                edit_modules=[m.name for m in dafnet.edited],
                if_edit_bias=dafnet.edit_bias,
                aux_model=kind.AuxModelConfig(**sizes),
                training=kind.TrainingConfig(
                    aux_model_lr=config.lr,
                    init_edit_lr=config.edit_lr,
                    edit_lr_lr=config.lr_lr,
                    relia_lambda=config.reliability_weight,
                    gen_lambda=config.generality_weight,
                    loc_lambda=config.locality_weight,
                    max_seq_modeling=1000,
                    increase_seq_modeling_i=3000,
                    increase_seq_modeling_pace=0.25,
                    ema_loss_lambda=0.01,
                    grad_clip=True,
                    accum_n=1,
                    loss_batch_size=config.loss_batch_size,
                    loss_sample_max_count=config.loss_sample_max_count,
                ),
                gradient_signal_batch_size=config.signal_batch_size,
            )
        except TypeError as error:
            raise AuthorsCodeError(
                f"{setting.options.reference} is another version of the authors' code ({error})."
            ) from None
        with redirect_stdout(StringIO()):
            self.editor = package.DAFNet(
                model or setting.load_model(), setting.tok, settings, device, device, [device]
            )
        self.folder, self.device = setting.folder, setting.device
        self.take_weights(dafnet)

    @torch.no_grad()
    def take_weights(self, dafnet: DAFNet) -> None:
        """Copy our networks, statistics and step sizes into theirs."""
        for shape, theirs in self.editor.aux_models.items():
            ours: Any = dafnet.networks[shape]
            parameters = dict(ours.named_parameters())
            for name, parameter in theirs.named_parameters():
                parameter.copy_(parameters[_our_name(name)])
            if not isinstance(ours.norm, ExactNorm):
                raise AuthorsCodeError("The comparison needs `norm_layer: exact`.")
            norm = theirs.norm_layer
            norm.mean, norm.var = ours.norm.mean.clone(), ours.norm.var.clone()
            norm.std, norm.k = norm.var.sqrt(), ours.norm.count.clone()
        for theirs, step_size in zip(self.editor.edit_lrs, dafnet.step_sizes, strict=True):
            theirs.copy_(step_size)

    # -- Training ---------------------------------------------------------------------------------

    def start_training(self, first: StepBatch, freeze: bool) -> None:
        """Their train_init. freeze: the statistics stay as they are."""

        def data(ids: Any) -> Any:
            return _xym(first.edits[:1]), {}, {}

        with redirect_stdout(StringIO()):
            self.editor.train_init(1, data, str(self.folder / "authors"))
            # Its data thread fills a buffer; what is timed must not share the processor with it.
            while self.editor.data_generator.is_loading_data:
                time.sleep(0.01)
        for network in self.editor.aux_models.values():
            network.norm_layer.train(not freeze)

    def step(self, batch: StepBatch) -> dict[str, float]:
        """One complete step with their functions. Returns the losses by our names."""
        editor = self.editor
        on = self.device
        learnt = {t.name: [x.to(on) for x in _xym(t.texts)] for t in batch.terms if not t.keep}
        kept = {t.name: [x.to(on) for x in _xym(t.texts)[::2]] for t in batch.terms if t.keep}
        reliability = learnt.pop("reliability")
        with redirect_stderr(StringIO()):  # its progress bars
            signals, lengths = editor.__get_model_gradient_signal__(*_xym(batch.edits))
            kept = editor.__prepare_loc_sample_before_edit__(kept)
            editor.__update_delta_weight__(signals, lengths, True)
            found = editor.__train_a_batch__(reliability, learnt, kept)
        losses = {"reliability": found["Edit-Reliability-Loss"]}
        losses |= found["Edit-Generality-Loss"] | found["Edit-Locality-Loss"]
        losses["loss"] = found["Edit-Loss"]
        return {name: float(value) for name, value in losses.items()}

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.editor.aux_models_opt, self.editor.edit_lrs_opt]

    def gradients(self) -> dict[str, Tensor]:
        """The present gradients under the names of our DAFNet's parameters."""
        found = {}
        for shape, network in self.editor.aux_models.items():
            for name, parameter in network.named_parameters():
                if parameter.grad is not None:
                    found[f"networks.{shape}.{_our_name(name)}"] = parameter.grad.clone()
        found["step_sizes"] = torch.stack([p.grad for p in self.editor.edit_lrs]).clone()
        return found

    # -- Editing ----------------------------------------------------------------------------------

    def edit(self, record: Record) -> None:
        request = {key: record[key] for key in ("prompt", "target_new")}
        self.editor.edit_one_piece(request)

    def restore(self) -> None:
        self.editor.restore_to_original_model()

    def fill_past(self, count: int) -> None:
        """Pretend that `count` edits were made: random representations in every layer."""
        for shape, modules in self.editor.shape_to_em_ids.items():
            network = self.editor.aux_models[shape]
            some = torch.randn(min(count, PAST_AT_ONCE), network.model_dim, device=self.device)
            past = some.repeat(-(-count // len(some)), 1)[None, :count]
            for m in modules:
                self.editor.edit_reps[m] = [past.clone() for _ in range(network.layer_n)]

    @property
    def model(self) -> Any:
        return self.editor.model
