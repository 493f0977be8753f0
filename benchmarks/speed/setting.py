"""What is measured: the language model, the facts, the networks' sizes and the batches."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_dafnet import DAFNetHyperParams, DAFNetTrainer, DAFNetTrainingHparams
from easyedit_dafnet.checkpoint import describe_base_model, save_dafnet
from easyedit_dafnet.dafnet_hparams import NetworkSizes
from easyedit_dafnet.facts import load_facts
from easyedit_dafnet.language_model import Text
from easyedit_dafnet.losses import LossTerm, record_texts
from easyedit_dafnet.record_files import read_records
from easyedit_dafnet.records import context_length
from easyedit_dafnet.unedited import Cache, Prepared, Unedited

SIZES = {
    "small": NetworkSizes(
        layer_n=1,
        inner_att_dim=256,
        ffn_dim=512,
        outer_att_dim=128,
        outer_score_att_dim=64,
    ),
    "published": NetworkSizes(),
}
# What the authors' settings for LLaMA-2-7B say.
PUBLISHED: dict[str, Any] = {
    "lr": 1e-6,
    "lr_lr": 1e-4,
    "lr_warmup": 0,
    "signal_batch_size": 8,
    "loss_batch_size": 24,
    "loss_sample_max_count": 48,
    "reliability_weight": 0.1,
    "generality_weight": 0.1,
    "locality_weight": 0.2,
}
# What each of them does to the fusion weights; all else is the same.
SETTINGS: dict[str, dict[str, Any]] = {
    "parity": {"train_fusion": False, "fusion_order": "released"},
    "product": {"train_fusion": True, "fusion_order": "paper"},
}
WARM_UP = 64  # edits that set the statistics of the normalisation
PASSAGE_WORDS, PASSAGE_TOKENS = 100, 1024

Record = Mapping[str, Any]


@dataclass(frozen=True)
class StepBatch:
    """One training step's texts, the same for both codes. edits: one a fact."""

    edits: list[Text]
    terms: list[LossTerm]


def forget(trainer: DAFNetTrainer) -> None:
    """Empty the trainer's cache: every record is then new to it."""
    old = trainer.unedited
    cache = Cache(old.cache.budget, old.cache.folder)
    trainer.unedited = Unedited(old.model, old.tok, old.modules, cache, old.numbered)


class Setting:
    """One language model, its tokenizer and the facts, in a folder for what is written."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        torch.set_num_threads(options.threads)
        self.options, self.folder = options, folder
        config = DAFNetTrainingHparams.from_hparams(options.hparams)
        self.config = replace(
            config, **PUBLISHED, device=options.device, seed=options.seed, archive=None
        )
        self.device = self.config.torch_device
        if options.data:
            self.records: list[Any] = read_records(options.data)
        else:
            self.records = load_facts("train", seed=options.seed)

    @cached_property
    def tok(self) -> Any:
        return AutoTokenizer.from_pretrained(self.config.tokenizer_name)

    def load_model(self) -> Any:
        """A language model of its own, float32 as the authors' code needs it."""
        model = AutoModelForCausalLM.from_pretrained(
            self.config.model_name, torch_dtype=torch.float32
        )
        return model.to(self.device).eval()

    @cached_property
    def model(self) -> Any:
        """The one that our code works on; whoever changes it restores it."""
        return self.load_model()

    def sizes(self, name: str) -> NetworkSizes:
        return self.config.network_sizes if name == "hparams" else SIZES[name]

    def batches(self, edits: int, count: int) -> list[list[Record]]:
        """`count` batches of facts of which none comes twice."""
        if len(self.records) < edits * count:
            raise ValueError(
                f"{count} batches of {edits} edits need {edits * count} facts, but there are "
                f"{len(self.records)}: give more with --data, or lower --edits or --repetitions."
            )
        rest = iter(self.records)
        return [list(islice(rest, edits)) for _ in range(count)]

    def trainer(self, size: str, setting: str) -> DAFNetTrainer:
        """Random networks, their statistics set and frozen; the losses include one passage."""
        passage = self.folder / "passage.txt"
        sentences = (f"{r['prompt']} {r['target_new']}." for r in self.records)
        passage.write_text(" ".join(" ".join(sentences).split()[:PASSAGE_WORDS]) + "\n")
        config = replace(
            self.config,
            **asdict(self.sizes(size)),
            **SETTINGS[setting],
            norm_warmup_edits=WARM_UP,
            passages=str(passage),
            passage_max_tokens=min(PASSAGE_TOKENS, context_length(self.model) or PASSAGE_TOKENS),
            results_dir=str(self.folder),
        )
        trainer = DAFNetTrainer(config, self.records[-WARM_UP:], model=self.model, tok=self.tok)
        with redirect_stderr(StringIO()):  # its progress bar
            trainer.prepare()
        return trainer

    def step_batch(self, trainer: DAFNetTrainer, records: Sequence[Record]) -> StepBatch:
        """The texts of the trainer's next step on these records; it will not have seen them."""
        texts = [record_texts(self.tok, record, self.model) for record in records]
        state = trainer.random.getstate()
        terms = trainer.loss_terms([Prepared(each, []) for each in texts])
        trainer.random.setstate(state)
        forget(trainer)  # the passage
        return StepBatch([each["reliability"] for each in texts], terms)

    def editing_hparams(self, size: str) -> DAFNetHyperParams:
        """Settings for editing with random networks of this size, saved as an archive."""
        archive = self.folder / f"archive-{size}"
        if not archive.exists():
            trainer = self.trainer(size, "product")
            base = describe_base_model(self.model, self.config.model_name, trainer.modules)
            save_dafnet(trainer.dafnet, archive, base)
        shared = {f.name for f in fields(DAFNetHyperParams)} & {f.name for f in fields(self.config)}
        values = {name: getattr(self.config, name) for name in shared}
        values |= asdict(self.sizes(size)) | SETTINGS["product"] | {"archive": str(archive)}
        return DAFNetHyperParams(**values)
