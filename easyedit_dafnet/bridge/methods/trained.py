"""EasyEdit's methods that learn to edit before they do: MEND and SERAC."""

from __future__ import annotations

import importlib
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from ...bench.method import Need, Request, Workbench
from ...bench.unedited_model import model_fingerprint
from ...dafnet_hparams import SettingsError
from ...records import IGNORE
from ..host import host_info
from .host_method import HostMethod, alg_dict
from .training import (
    Archive,
    HostRecord,
    fingerprint,
    freeze,
    in_turn,
    train,
    trainable,
    without_hook_warnings,
)


class TrainedMethod(HostMethod):
    """A method that EasyEdit's EditTrainer trains, here on the benchmark's training records.

    The file `hparams` holds the settings for training, too, as EasyEdit's do; `max_iters` is the
    number of steps. The host's archives are pickles: what is learnt is kept as safetensors in the
    method's folder instead, and put into the host's executor by `load`.
    """

    training_class: ClassVar[str]
    #: Settings that are the machine's or the log's, and decide nothing.
    ASIDE: ClassVar[frozenset[str]] = frozenset(
        {"model_name", "tokenizer_name", "device", "archive", "results_dir"}
    )

    def __init__(self, bench: Workbench, settings: Mapping[str, Any]) -> None:
        super().__init__(bench, settings)
        if not self.hparams.max_iters:
            raise SettingsError(
                f"{self.name} needs the setting 'max_iters': say how many steps to train."
            )

    def training_settings(self) -> Any:
        kind = getattr(importlib.import_module("easyeditor"), self.training_class)
        values = asdict(self.hparams) | {
            "alg": self.name,
            "tokenizer_name": self.bench.model_name,
        }
        return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})

    @cached_property
    def records(self) -> list[HostRecord]:
        """The training records in the order of the steps."""
        fit = trainable(self.bench.train)
        count = self.hparams.max_iters * self.hparams.batch_size
        return in_turn(fit, count, self.hparams.seed) if fit else []

    @cached_property
    def archive(self) -> Archive:
        settings = asdict(self.training_settings())
        decisive = {name: value for name, value in settings.items() if name not in self.ASIDE}
        models = [model_fingerprint(name) for name in self.made_of]
        return Archive(
            self.bench.folder, fingerprint(host_info().kind, decisive, models, self.records)
        )

    @property
    def made_of(self) -> list[str]:
        """The models that training starts from."""
        return [self.bench.model_name]

    def needs(self) -> list[Need]:
        if not self.records:
            return [
                Need(
                    "training records",
                    "missing",
                    "give training data whose records have a rephrase and a locality prompt",
                )
            ]
        note = self.archive.note()
        if self.archive.is_ready():
            detail = f"{note['steps']} steps, trained in {note['seconds']:.0f} s"
            return [Need("trained networks", "ready", detail)]
        detail = f"{self.hparams.max_iters} training steps, {self.minutes} on one CPU thread"
        if note:
            detail += "; those in the folder are of other settings, data or another model"
        return [Need("trained networks", "to prepare", detail)]

    #: About how long training takes, with the shipped settings.
    minutes: ClassVar[str]

    def prepare(self) -> None:
        if self.archive.is_ready():
            return
        began = time.perf_counter()
        tensors = train(self.training_settings(), self.records, self.bench.tok)
        note = {
            "seconds": time.perf_counter() - began,
            "steps": self.hparams.max_iters,
            "records": len({record["case_id"] for record in self.records}),
        }
        self.archive.write(tensors, note)

    def preparation_seconds(self) -> float | None:
        """The training's, without what an interrupted one before it lost."""
        return self.archive.note().get("seconds")

    def start(self, model: Any) -> None:
        if not self.archive.is_ready():
            raise RuntimeError(f"{self.name} is not trained yet: call prepare first.")
        super().start(model)
        self.executor = alg_dict()[self.name].__self__
        self.load(model)

    @abstractmethod
    def load(self, model: Any) -> None:
        """Put model and trained networks into the host's executor, as its init_model does."""

    def stop(self) -> None:
        super().stop()
        del self.executor


class MEND(TrainedMethod):
    """arXiv 2110.11309, on EasyEdit's form of it.

    Its trainer asks the edited model the edit's own prompt where the paper asks a rephrase. The
    release leaves the networks in training mode when editing, in which their statistics start
    again with the first edit, and takes padding in a batch of edits for a label; neither is so
    here.
    """

    name = "MEND"
    training_class = "MENDTrainingHparams"
    minutes = "about 5 minutes"

    @classmethod
    def unavailable(cls) -> str | None:
        if host_info().kind == "release" and Version(transformers.__version__) >= Version("4.48"):
            return (
                "EasyEdit's release patches the model by `higher`, which fails with transformers "
                f"{transformers.__version__}: use transformers below 4.48 or EasyEdit's git main"
            )
        return None

    def load(self, model: Any) -> None:
        freeze(model, self.hparams.inner_params)
        kind = importlib.import_module("easyeditor.trainer").MEND
        alg = kind(model, self.hparams, lambda: deepcopy(model))
        alg.load_state_dict({**self.archive.read(), "model_config": model.config})
        alg.to(self.bench.device).eval()
        loss = alg.edit_loss_fn
        padding = self.bench.tok.eos_token_id  # as `tokenizer` sets it

        def loss_without_padding(config: Any, pred: Tensor, targ: Tensor, **kwargs: Any) -> Any:
            return loss(config, pred, targ.masked_fill(targ == padding, IGNORE), **kwargs)

        alg.edit_loss_fn = loss_without_padding
        self.executor.model, self.executor.tokenizer = model, self.bench.tok
        self.executor.alg, self.executor.is_init = alg, True

    def edit(self, requests: Sequence[Request]) -> None:
        with without_hook_warnings():
            super().edit(requests)

    def stop(self) -> None:
        model = self.model
        super().stop()
        for handle in model.handles:
            handle.remove()
        del model.handles
        for parameter in model.parameters():
            for kept in ("__x__", "__delta__"):  # what the hooks have seen
                vars(parameter).pop(kept, None)


class SERAC(TrainedMethod):
    """arXiv 2206.06520: a classifier that finds the edit a question is about, and a small language
    model that answers it with the edit as context. The model itself stays as it is.

    Both come from local folders, `cls_name` (an encoder with its tokenizer) and `small_name`, and
    are trained here. EasyEdit's function forgets each edit with the next call; here the memory is
    handed on. As in EasyEdit, a name with "bert" means that the first token's state is compared,
    another one that the pooled output is.
    """

    name = "SERAC"
    training_class = "SERACTrainingHparams"
    minutes = "hours"
    one_by_one: ClassVar[bool] = True  # the texts are joined with edits of other lengths
    ASIDE: ClassVar[frozenset[str]] = TrainedMethod.ASIDE | {"cls_name", "small_name"}
    PARTS: ClassVar[Mapping[str, str]] = {
        "cls_name": "scope classifier",
        "small_name": "counterfactual model",
    }

    @property
    def made_of(self) -> list[str]:
        return [*super().made_of, *(getattr(self.hparams, name) for name in self.PARTS)]

    def needs(self) -> list[Need]:
        missing = [
            Need(what, "missing", f"set `{name}` to a local folder with a model and its tokenizer")
            for name, what in self.PARTS.items()
            if not Path(getattr(self.hparams, name) or "").joinpath("config.json").is_file()
        ]
        return missing or super().needs()

    def load(self, model: Any) -> None:
        kind = importlib.import_module("easyeditor.trainer").SERAC
        alg = kind(model, deepcopy(self.hparams), lambda: deepcopy(model))
        alg.load_state_dict({**self.archive.read(), "model_config": model.config})
        alg.eval()
        self.executor.model, self.executor.tokenizer = model, self.bench.tok
        self.executor.alg, self.executor.is_init = alg, True

    def apply(self, tok: Any, requests: list[dict[str, Any]]) -> Any:
        self.executor.alg = super().apply(tok, requests)
        return Answers(self.executor.alg)

    def state_bytes(self) -> int:
        """The edits' texts in UTF-8; classifier and counterfactual model do not grow with them."""
        alg = self.executor.alg
        return sum(len(text.encode()) for text in [*alg.cache_inputs, *alg.cache_labels])


class Answers(nn.Module):
    """EasyEdit's SERAC with what is asked of a language model."""

    def __init__(self, serac: Any) -> None:
        super().__init__()
        self.serac = serac

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            serac: Any = super().__getattr__("serac")
            return getattr(serac.model, name)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Logits [n, length, vocabulary]; texts are padded on the left."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        asked = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._is_too_long(input_ids):
            return self.serac.model(**asked, **kwargs)
        return CausalLMOutput(logits=self.serac(**asked))

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Tensor:
        """[1, length + new tokens]; the context that answers is not part of it."""
        if len(input_ids) != 1:
            raise ValueError(f"SERAC answers one question at a time, not {len(input_ids)}.")
        in_scope = False
        if not self._is_too_long(input_ids):
            similarity, nearest, _ = self.serac.run_classifier(input_ids=input_ids)
            in_scope = similarity.item() > 0.5
        if not in_scope:
            return self.serac.model.generate(
                input_ids=input_ids, attention_mask=attention_mask, **kwargs
            )
        asked = self.serac.build_rep_input_tokens(
            {"input_ids": input_ids}, nearest, generation=True
        )
        answer = self.serac.replacement.generate(**asked, **kwargs)
        return torch.cat([input_ids, answer[:, asked["input_ids"].size(1) :]], dim=1)

    def _is_too_long(self, input_ids: Tensor) -> bool:
        """Whether the classifier cannot read the text. No question is that long; passages are."""
        texts = self.serac.replacement_tok.batch_decode(input_ids, skip_special_tokens=True)
        limit = getattr(self.serac.classifier.config, "max_position_embeddings", None)
        lengths = map(len, self.serac.classifier_tok(texts)["input_ids"])
        return limit is not None and max(lengths) > limit
