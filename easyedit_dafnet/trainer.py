"""Edit training of DAFNet (paper, 3.4), used as EasyEdit's users use `EditTrainer`:

    trainer = DAFNetTrainer(config=hparams, train_set=train_ds, val_set=val_ds)
    trainer.run()

Each step simulates a sequence of n edits: their signals pass the networks once, the changed
weights are judged on the losses, and what the losses say of the changes goes back through the
networks. The language model itself is never changed.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from . import __version__
from .archive import check_archive_folder
from .checkpoint import dafnet_for, describe_base_model, save_dafnet
from .dafnet import DAFNet
from .dafnet_hparams import DAFNetTrainingHparams, SettingsError
from .edit_requests import Record, RequestError, refuse, training_records
from .edited_weights import EditedWeights
from .language_model import LanguageModel, Text, answer_width, inference_mode_of, texts_of
from .least_squares import LeastSquares
from .losses import KINDS, LossTerm, backward_losses, record_texts
from .models import editable, own_precision
from .prompts import question
from .records import context_length, encode_passages, token_ids, worded
from .resuming import Interrupted, StopSignals
from .same_subject import with_same_subject
from .scoring import sequence_scores
from .second_moments import pieces_of, sums_of_inputs
from .signals import find_modules
from .text import moment_passages
from .training_folder import TrainingFolder
from .training_state import restore_state, save_state
from .unedited import Cache, Prepared, Unedited, joined_signals

LOG = logging.getLogger(__name__)
PASSAGES_GENERATED, PASSAGES_AT_ONCE = 64, 16
PASSAGE_START = 3  # tokens
STATISTICS_AT_ONCE = 8  # edits; with the momentum norm it matters


@dataclass
class Curriculum:
    """Length N of the training sequences: it grows when the loss no longer falls."""

    length: int = 1
    longest: int = 1000
    patience: int = 3000
    growth: float = 0.25
    rate: float = 0.01  # of the exponential average
    average: float = 1.0
    minimum: float = 10.0
    minimum_step: int = 0

    def update(self, loss: float, step: int) -> None:
        self.average += self.rate * (loss - self.average)
        if self.average < self.minimum:
            self.minimum, self.minimum_step = self.average, step
        waited = step - self.minimum_step
        decades = max(1.0, math.log10(self.length))
        if waited > self.patience / decades and self.length < self.longest:
            self.length += max(int(self.length * self.growth), 10)
            self.length = min(self.length, self.longest)
            self.average += 0.3
            self.minimum, self.minimum_step = 10.0, step


def as_records(data: Any, name: str) -> list[Record]:
    """The records of an EasyEdit data set, a torch Dataset or a list, as training reads them."""
    return training_records([data[i] for i in range(len(data))], name)


class DAFNetTrainer:
    """Trains DAFNet's auxiliary networks for one language model.

    config: DAFNetTrainingHparams. train_set: an EasyEdit data set or any list of records (dicts
    with prompt, target_new and, each optional, rephrase_prompt, locality_prompt with
    locality_ground_truth, prefix; or DAFSet's), or {name: data set} for several; a batch then
    comes from one of them at a time. val_set: records to validate on; the checkpoint with the best
    score is kept. model, tok: a language model in memory, else config.model_name is loaded.
    """

    @own_precision()
    def __init__(
        self,
        config: DAFNetTrainingHparams,
        train_set: Any,
        val_set: Any = None,
        model: Any = None,
        tok: Any = None,
    ) -> None:
        if not isinstance(config, DAFNetTrainingHparams):
            raise SettingsError(
                f"config is a {type(config).__name__}; DAFNetTrainer takes DAFNetTrainingHparams."
            )
        if config.fusion == "least_squares" and not (config.norm_warmup_edits or config.archive):
            raise SettingsError(
                "Setting 'norm_warmup_edits' is 0, but least squares sets its scale by the keys of "
                "some edits first; set it to 256, say."
            )
        self.config = config
        sets = train_set if isinstance(train_set, Mapping) else {"edits": train_set}
        self.train_sets = {
            name: as_records(data, f"train_set {name!r}") for name, data in sets.items()
        }
        self.val_records = as_records(val_set, "val_set") if val_set is not None else []

        device = config.torch_device
        if model is None:
            loader = getattr(transformers, config.model_class, None)
            if loader is None:
                raise SettingsError(
                    f"Setting 'model_class' is {config.model_class!r}, which transformers does not "
                    "have; AutoModelForCausalLM suits most models."
                )
            model = loader.from_pretrained(
                config.model_name,
                torch_dtype=torch.bfloat16 if config.half else torch.float32,
                device_map="auto" if config.model_parallel else None,
            )
            if not config.model_parallel:
                model.to(device)
        if tok is None:
            tok = getattr(transformers, config.tokenizer_class).from_pretrained(
                config.tokenizer_name
            )
        self.model, _ = editable(model)
        self.tok = tok
        self.modules = find_modules(self.model, config.inner_params)
        self.at_subject = config.fusion == "least_squares"
        for name, records in self.train_sets.items():
            self.train_sets[name] = self.readable(records, f"train_set {name!r}")
        if self.val_records:
            self.val_records = self.readable(self.val_records, "val_set")

        self.random = random.Random(config.seed)
        torch.manual_seed(config.seed)
        if config.edit_bias and (bare := [m.name for m in self.modules if not m.has_bias]):
            raise SettingsError(
                f"Setting 'edit_bias' is true, but {bare[0]} has no bias; set it to false, or "
                "leave the module out of inner_params."
            )
        if config.archive:
            # A copy: editing in this process goes on with the archive as it was.
            self.dafnet = deepcopy(dafnet_for(self.model, config)).requires_grad_(True)
            self.dafnet.train_fusion = config.train_fusion
        else:
            self.dafnet = DAFNet(
                self.modules,
                config.network_sizes,
                edit_lr=config.edit_lr,
                edit_bias=config.edit_bias,
                train_fusion=config.train_fusion,
                fusion_order=config.fusion_order,
                fusion=config.fusion,
                directions=config.directions,
                text_weight=config.text_weight,
                d_answer=answer_width(self.model) if config.fusion == "least_squares" else 0,
            ).to(device)
        self.language_model = LanguageModel(self.model, [m.name for m in self.modules])
        cache = Cache(config.cache_gb * 1e9, Path(config.results_dir))
        known = [r for records in self.train_sets.values() for r in records] + self.val_records
        self.unedited = Unedited(
            self.language_model, tok, self.modules, cache, known, self.at_subject, config.wording
        )
        self.passages: list[Text] = []
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.dafnet.networks.parameters()), "lr": config.lr},
                {"params": self.rates_of_their_own, "lr": config.lr_lr},
            ],
            fused=True,
        )
        self.warmup = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.rate)
        self.curriculum = Curriculum(
            length=config.seq_len_start,
            longest=config.seq_len_max,
            patience=config.seq_len_patience,
            growth=config.seq_len_growth,
            rate=config.ema_loss,
        )
        self.folder = TrainingFolder.of(config)
        self.save_path, self.log_path = self.folder.archive, self.folder.log
        self.state_path = self.folder.state
        self.step, self.best = 0, {"score": -1.0}
        self.validated, self.waited = 0, 0  # step of the last validation; those since the best one

    @property
    def rates_of_their_own(self) -> list[torch.nn.Parameter]:
        """Step sizes, and the weights of least squares: few numbers that much hangs on."""
        solver = self.dafnet.least_squares
        return [self.dafnet.step_sizes, *([solver.log_weights] if solver else [])]

    def rate(self, step: int) -> float:
        """What the learning rates are multiplied by."""
        rate = min(1.0, (step + 1) / (self.config.lr_warmup + 1))
        if self.config.lr_schedule == "cosine":
            done = min(1.0, step / self.config.max_iters)
            rate *= 0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2
        return rate

    def readable(self, records: Sequence[Record], name: str) -> list[Record]:
        """The records as they are put to the model.

        Raises RequestError for those that could not be used when their turn comes.
        """
        found = worded(self.tok, records, self.config.wording, self.at_subject)
        if self.config.same_subject_weight:
            found = with_same_subject(found, self.config.seed, self.config.other_questions)
        else:
            for record in found:  # nor are those asked that they bring
                for key in ("same_subject_prompt", "same_subject_ground_truth"):
                    record.pop(key, None)
        problems = {}
        for i, record in enumerate(tqdm(found, desc=f"Reading {name}", leave=False, delay=2)):
            try:
                record_texts(self.tok, record, self.model, self.at_subject, self.config.wording)
            except RequestError as error:
                problems[i] = str(error)
        refuse(records, problems)
        return found

    # ---- one step -------------------------------------------------------------------------------

    def loss_terms(self, prepared: Sequence[Prepared]) -> list[LossTerm]:
        """The losses of a batch, each on at most `loss_sample_max_count` of its texts."""
        weights = {
            "reliability": self.config.reliability_weight,
            "generality": self.config.generality_weight,
            "locality": self.config.locality_weight,
            "same_subject": self.config.same_subject_weight,
        }
        terms = []
        for name, kind in KINDS.items():
            texts = [p.texts[name] for p in prepared if name in p.texts]
            if name == "passage" and self.passages:
                texts = [self.unedited.passage(self.random.choice(self.passages))]
            if texts:
                count = min(len(texts), self.config.loss_sample_max_count)
                rows = sorted(self.random.sample(range(len(texts)), count))
                terms.append(LossTerm(name, weights[kind], [texts[row] for row in rows]))
        return terms

    def edited(
        self, prepared: Sequence[Prepared], texts: Sequence[Text]
    ) -> tuple[EditedWeights, Tensor | None]:
        """The language model's weights after the records' edits, to be judged on the texts.

        With fusion by least squares also the penalty on long values: what an edit writes where it
        should not grows with them.
        """
        updates, _ = self.dafnet(joined_signals(prepared))
        tokens = [self.language_model.tokens_at(m.name, texts) for m in self.modules]
        penalty = None
        if self.dafnet.least_squares is not None:
            squares = torch.stack([u.delta_hat.square().sum(-1).mean() for u in updates])
            penalty = self.config.value_weight * squares.sum()
        return EditedWeights(self.model, self.modules, updates, tokens), penalty

    def train_step(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """One step of training on a sequence of edits. Returns the losses."""
        # Only the normalisation tells training from evaluation: it then goes on counting.
        self.dafnet.train(not self.config.norm_warmup_edits)
        prepared = self.unedited.records(records)
        terms = self.loss_terms(prepared)
        edited, penalty = self.edited(prepared, [text for term in terms for text in term.texts])
        with inference_mode_of(self.model), edited.applied() as parameters:
            losses = backward_losses(
                self.language_model, terms, parameters, self.config.loss_batch_size
            )
        edited.backward(penalty)
        if penalty is not None:
            losses["values"] = penalty.item()
            losses["loss"] += losses["values"]
        losses["gradient_norm"] = self.clip()
        self.optimizer.step()
        self.warmup.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses

    def clip(self) -> float:
        """Clip the gradient of the networks; returns its norm before.

        Raises FloatingPointError, before anything is changed, when it is not finite.
        """
        parameters = list(self.dafnet.networks.parameters())
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not norm.isfinite():
            raise FloatingPointError(
                f"The gradient of step {self.step + 1} is not finite, so training ends and the "
                "networks are left as they were; train with a smaller lr, lr_lr or edit_lr."
            )
        if norm > self.config.grad_clip:  # else the pass over the gradients would change nothing
            clip_grads_with_norm_(parameters, self.config.grad_clip, norm)
        return norm.item()

    # ---- before, between and after --------------------------------------------------------------

    def prepare(self) -> None:
        """Set the statistics of the normalisation, what to protect, and find the passages."""
        edits = self.config.norm_warmup_edits
        if edits and not self.config.archive:
            pool = [r for records in self.train_sets.values() for r in records]
            some = self.random.sample(pool, min(edits, len(pool)))
            step = STATISTICS_AT_ONCE
            for i in tqdm(range(0, len(some), step), desc="Signal statistics", leave=False):
                group = self.unedited.records(some[i : i + step])
                self.dafnet.update_statistics(joined_signals(group))
            if self.dafnet.least_squares is not None:
                self.protect_text(self.dafnet.least_squares, some)
        self.passages = self.read_passages()

    def protect_text(self, solver: LeastSquares, records: Sequence[Mapping[str, Any]]) -> None:
        """Find the inputs that edits should leave alone: a text's, and the subjects' at large."""
        passages = moment_passages(self.config.text)
        context = context_length(self.model)
        pieces = pieces_of(self.tok, passages, self.config.text_tokens, context)
        inputs, directions = sum(map(len, pieces)) + len(records), self.config.directions
        if inputs <= min(directions, max(m.d_in for m in self.modules) - 1):
            raise SettingsError(
                f"Setting 'directions' is {directions}, but the text and the edits have {inputs} "
                "inputs, which do not tell so many apart; lower it, or raise 'text_tokens' or "
                "'norm_warmup_edits'."
            )
        with inference_mode_of(self.model):
            sums = sums_of_inputs(self.model, [m.name for m in self.modules], pieces)
        keys = [s.x.to(self.dafnet.device) for s in joined_signals(self.unedited.records(records))]
        for m, module in enumerate(self.modules):
            solver.protect(m, sums[module.name], keys[m].T @ keys[m])
            solver.scale_to(m, keys[m])

    def read_passages(self) -> list[Text]:
        """Plain text whose predictions must stay."""
        source, limit = self.config.passages, self.config.passage_max_tokens
        limit = min(limit, context_length(self.model) or limit)
        if source is None:
            return []
        if source == "generated":
            texts = self.generate_passages(limit)
        elif Path(source).is_file():
            paragraphs = Path(source).read_text(encoding="utf-8").splitlines()
            texts = [p for p in paragraphs if len(p.split()) > 20]
        else:
            raise SettingsError(
                f"Setting 'passages' is {source!r}, but there is no such file; name a text file, "
                "or set `passages: generated` or null."
            )
        if not texts:
            raise SettingsError(f"passages: {source!r} has no line of more than 20 words.")
        passages = texts_of(encode_passages(self.tok, texts, limit))
        return [text for text in passages if len(text.target_labels)]

    def generate_passages(self, length: int) -> list[str]:
        """What the unedited model itself goes on to say after the first words of some prompts."""
        pool = [question(r["prompt"]) for records in self.train_sets.values() for r in records]
        starts = [
            ids[:PASSAGE_START] for ids in token_ids(self.tok, self.random.sample(pool, len(pool)))
        ]
        starts = [s for s in starts if len(s) == PASSAGE_START][:PASSAGES_GENERATED]
        texts: list[str] = []
        with inference_mode_of(self.model):
            for i in tqdm(range(0, len(starts), PASSAGES_AT_ONCE), desc="Passages", leave=False):
                # Starts of one length need no padding.
                ids = torch.tensor(starts[i : i + PASSAGES_AT_ONCE], device=self.model.device)
                out = self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    max_length=length,
                    pad_token_id=self.tok.eos_token_id,
                )
                texts += self.tok.batch_decode(out, skip_special_tokens=True)
        return texts

    def batches(self) -> list[Mapping[str, Any]]:
        """Records of the next step: from one data set, 1 to N of them."""
        records = self.train_sets[self.random.choice(sorted(self.train_sets))]
        n = self.random.randint(1, self.curriculum.length)
        return self.random.sample(records, min(n, len(records)))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Scores after sequences of each length in `val_seq_lens`, on the validation records.

        {"reliability@10": ..., "score": mean over the lengths of the harmonic mean}.
        """
        self.dafnet.eval()
        records = self.val_records[: self.config.val_edits]
        scores: dict[str, float] = {}
        for length in self.config.val_seq_lens:
            found: dict[str, list[float]] = {}
            for i in range(0, len(records), length):
                prepared = self.unedited.records(records[i : i + length])
                texts = [p.texts for p in prepared]
                edited, _ = self.edited(prepared, [text for t in texts for text in t.values()])
                with inference_mode_of(self.model), edited.applied() as parameters:
                    result = sequence_scores(self.language_model, texts, parameters)
                for key, values in result.items():
                    found.setdefault(key, []).extend(values)
            means = {key: fmean(values) for key, values in found.items() if values}
            means["score"] = harmonic_mean(list(means.values()))
            scores |= {f"{key}@{length}": round(value, 4) for key, value in means.items()}
        scores["score"] = fmean(scores[f"score@{n}"] for n in self.config.val_seq_lens)
        return scores

    @property
    def base_model(self) -> dict[str, Any]:
        """What the checkpoint says of the language model."""
        return describe_base_model(self.model, self.folder.model, self.modules)

    def save(self, scores: Mapping[str, float]) -> None:
        """Write the checkpoint with all that is needed to know where it comes from."""
        settings = asdict(self.config)
        for place in ("model_name", "tokenizer_name", "archive", "results_dir"):
            del settings[place]  # folders of this machine
        for file in ("passages", "text"):
            settings[file] = settings[file] and Path(settings[file]).name
        save_dafnet(
            self.dafnet,
            self.save_path,
            self.base_model,
            {
                "settings": settings,
                "step": self.step,
                "minutes": round((time.perf_counter() - self.started) / 60, 1),
                "records": {k: len(v) for k, v in self.train_sets.items()},
                "validation": dict(scores),
                "hardware": f"{self.dafnet.device.type}, {torch.get_num_threads()} threads",
                "versions": {
                    "easyedit_dafnet": __version__,
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                },
            },
            getattr(torch, self.config.archive_dtype),
        )

    @own_precision()
    def run(self, resume: bool = False, fresh: bool = False) -> dict[str, float]:
        """Train for `max_iters` steps. Returns the scores of the checkpoint that was kept.

        The state of the run is in `state_path`, as of the last `save_interval` or, after SIGINT
        or SIGTERM, of the step that was then running; Interrupted, a KeyboardInterrupt,
        is raised with it. resume: go on from there with the same settings and data; on a CPU the
        losses and weights are, bit for bit, those of a run that was never interrupted. `max_iters`
        may be raised, so that a finished run goes on, unless the rates fall to its end (cosine).
        fresh: begin anew where there is a run, which is replaced; without either there must be
        none. The network of another language model is never replaced.
        Raises CheckpointError, OutputError or SettingsError, before anything is changed, when
        there is nothing that can be resumed, or something that would be lost.
        """
        config, self.started = self.config, time.perf_counter()
        # Networks and their two moments in the state.
        size = 3 * sum(4 * p.numel() for p in self.dafnet.parameters())
        self.folder.check(resume, fresh, size)
        log_size = restore_state(self) if resume else 0  # first: it tells another model better
        check_archive_folder(self.save_path, self.base_model)
        if not resume:
            self.prepare()
            save_state(self, log_size)
        saved = self.step
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        writer = self.tensorboard()
        with (
            self.log_path.open("a") as log,
            writer or nullcontext(),
            tqdm(total=config.max_iters, initial=self.step, desc="DAFNet") as bar,
        ):
            # What a run noted after its last state is noted again.
            log.truncate(min(log_size, log.tell()))
            log.seek(0, 2)

            def note(values: Mapping[str, float]) -> None:
                values = {"step": self.step, **values}
                log.write(json.dumps(values) + "\n")
                log.flush()
                if writer is not None:
                    for key, value in values.items():
                        writer.add_scalar(key, value, self.step)

            def judge() -> None:
                scores = self.validate()
                note(scores)
                bar.write(
                    f"step {self.step}: " + ", ".join(f"{k} {v:.2f}" for k, v in scores.items())
                )
                self.validated, self.waited = self.step, self.waited + 1
                if scores["score"] > self.best["score"]:
                    self.best, self.waited = scores, 0
                    self.save(scores)

            with StopSignals() as stop:
                while self.step < config.max_iters and not self.out_of_patience:
                    records = self.batches()
                    losses = self.train_step(list(records))
                    self.step += 1
                    self.curriculum.update(losses["loss"], self.step)
                    bar.update()
                    bar.set_postfix(loss=f"{self.curriculum.average:.3f}", N=self.curriculum.length)
                    if self.step % config.log_interval == 0:
                        note({**losses, "edits": len(records), "N": self.curriculum.length,
                              "average": self.curriculum.average,
                              "seconds": time.perf_counter() - self.started})  # fmt: skip
                    if self.val_records and self.step % config.val_interval == 0:
                        judge()
                    signal = stop.received  # read once: it may come at any moment
                    if self.step % config.save_interval == 0 or signal:
                        save_state(self, log.tell())
                        saved = self.step
                    if signal:
                        raise Interrupted(
                            f"Training was stopped after step {self.step} of {config.max_iters}; "
                            f"its state is in {self.state_path}. To go on, give the same command "
                            "with --resume, or call run(resume=True) with the same settings and "
                            "data.",
                            128 + signal,
                        )
            if saved != self.step:
                save_state(self, log.tell())
            if self.val_records and self.validated != self.step:
                judge()
                save_state(self, log.tell())
            if not self.val_records:
                self.best = {}
                self.save({})
        if self.step < config.max_iters:
            LOG.warning(
                "Training was stopped after step %d: %d validations in a row have not been better "
                "than the best score, %.4f (setting 'val_patience').",
                self.step,
                self.waited,
                self.best["score"],
            )
        LOG.info("The trained DAFNet is in %s", self.save_path)
        return self.best

    @property
    def out_of_patience(self) -> bool:
        """Whether enough validations in a row were no better than the best one."""
        return 0 < self.config.val_patience <= self.waited

    def tensorboard(self) -> Any:
        if not self.config.tensorboard:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError(
                "Setting 'tensorboard' needs the extra of that name: "
                'pip install "easyedit_dafnet[tensorboard]".'
            ) from None
        # Points that a run wrote after its last state, or a former run here, are not shown.
        return SummaryWriter(str(self.log_path.parent / "tensorboard"), purge_step=self.step + 1)
