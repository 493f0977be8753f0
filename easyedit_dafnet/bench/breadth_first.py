"""Breadth-first fine-tuning of one layer (LocFT-BF: Yang et al., arXiv 2509.22072).

EasyEdit's FT brings one edit to convergence before it looks at the next. Fine-tuning as everywhere
else, in epochs of mini-batches over all edits, forgets far less. What one matrix of a late layer
needs from the layers below never changes, so it is computed once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ..dafnet_hparams import SettingsError, nearest, read_settings, settings_file, typed
from ..language_model import LanguageModel, Text, inference_mode_of, texts_of
from ..records import encode_requests
from ..signals import find_modules
from .method import Method, Request, Workbench


@dataclass(frozen=True)
class BreadthFirstSettings:
    """module: the one that is tuned. lr: of Adam. batch_size: edits in a step.

    epochs: at most so many passes over all edits; done is the pass whose mean loss (nats, averaged
    over an edit's target tokens) is below `enough`. Steps whose loss is below it change nothing.
    append_eos: the text's end is learnt as part of each target, so that generation stops there.
    """

    module: str
    lr: float = 5e-4
    batch_size: int = 100
    epochs: int = 25
    enough: float = 1e-2
    append_eos: bool = True

    def __post_init__(self) -> None:
        for name, value in typed(self).items():
            object.__setattr__(self, name, value)
        for name in ("lr", "batch_size", "epochs"):
            if getattr(self, name) <= 0:
                raise SettingsError(
                    f"Setting {name!r} is {getattr(self, name)}; it must be above zero."
                )


class BreadthFirst(Method):
    """Fine-tunes one module on all edits of the stream together.

    settings: those of BreadthFirstSettings, and `hparams`, a file with them.
    """

    name: ClassVar[str] = "BFT"
    whole_stream: ClassVar[bool] = True

    def __init__(self, bench: Workbench, settings: Mapping[str, Any]) -> None:
        super().__init__(bench, settings)
        given = dict(self.settings)
        file = settings_file(given.pop("hparams", "BFT/smollm2-135m"))
        values = read_settings(file) | given
        known = {f.name for f in fields(BreadthFirstSettings)}
        if unknown := sorted(set(values) - known):
            raise SettingsError(
                f"{file}: BFT has no setting {unknown[0]!r}; {nearest(unknown[0], known)}"
            )
        if "module" not in values:
            raise SettingsError(f"{file}: BFT's setting 'module' is missing: name what is tuned.")
        self.tuning = BreadthFirstSettings(**values)

    @property
    def effective_settings(self) -> Mapping[str, Any]:
        return asdict(self.tuning)

    def edit(self, requests: Sequence[Request]) -> None:
        tuning, tok = self.tuning, self.bench.tok
        (module,) = find_modules(self.model, [tuning.module])
        end = tok.eos_token if tuning.append_eos else ""
        batch = encode_requests(
            tok, [{**r, "target_new": r["target_new"] + end} for r in requests], self.model
        )
        language_model = LanguageModel(self.model, [module.name])
        with inference_mode_of(self.model):
            texts = language_model.with_hidden(texts_of(batch))
            weight = self.model.get_parameter(module.weight_name)
            tuned = weight.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([tuned], tuning.lr)
            bar = tqdm(range(tuning.epochs), desc=f"{self.name} epochs", disable=len(texts) < 50)
            for _ in bar:
                random.shuffle(texts)
                losses = [
                    self._step(language_model, optimizer, texts[i : i + tuning.batch_size])
                    for i in range(0, len(texts), tuning.batch_size)
                ]
                mean = sum(losses) / len(texts)
                bar.set_postfix(loss=f"{mean:.3f}")
                if mean < tuning.enough:
                    break
        with torch.no_grad():
            weight.copy_(tuned)

    def _step(
        self, language_model: LanguageModel, optimizer: torch.optim.Adam, texts: list[Text]
    ) -> float:
        """One step of Adam on a mini-batch; returns the sum of its edits' losses."""
        (tuned,) = optimizer.param_groups[0]["params"]
        optimizer.zero_grad()
        total = 0.0
        for pack in language_model.packs(texts, self.tuning.batch_size):
            logits = language_model.logits(pack, {f"{self.tuning.module}.weight": tuned})
            labels = torch.cat([text.target_labels for text in pack]).to(logits.device)
            counts = torch.tensor([len(t.target_labels) for t in pack], device=logits.device)
            each = cross_entropy(logits.float(), labels, reduction="none")
            loss = (each / counts.repeat_interleave(counts)).sum()
            (loss / len(texts)).backward()
            total += loss.item()
        if total / len(texts) >= self.tuning.enough:
            optimizer.step()
        return total
