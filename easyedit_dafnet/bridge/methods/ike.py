"""IKE, which edits by context: EasyEdit's demonstrations, and a memory of the stream's edits."""

from __future__ import annotations

import importlib
import json
import pickle
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...bench.method import Need, Request, Workbench
from ...bench.unedited_model import model_fingerprint
from ...dafnet_hparams import SettingsError
from ...files import write_text
from ..host import host_info
from .host_method import HostMethod
from .training import Archive, HostRecord, fingerprint, in_turn, trainable

ENCODER, SENTENCES = "encoder", "sentences.json"


class Facts(list[HostRecord]):
    """Training records as EasyEdit's IKE takes them; it names its file by this class."""


class IKE(HostMethod):
    """arXiv 2305.12740, with EasyEdit's demonstrations and wording.

    A question is asked after "New Fact: ..." and after demonstrations that EasyEdit picks for this
    fact from the training records, by their similarity. EasyEdit is always told which fact belongs
    to a question. Here the facts of the stream are kept, and the one whose prompt is most similar
    to the question is taken, also for questions that none of them is about: retrieval over a
    stream is the benchmark's, not EasyEdit's. The model itself stays as it is.

    settings: as for every method of the host; `sentence_model_name` may be null, for a sentence
    encoder made of the language model's first layers, without a download. `demonstrations`: how
    many training records EasyEdit picks from.
    """

    name = "IKE"
    #: Of the first 0, 2, 4, 6, 8, 12 and 15 layers of SmolLM2-135M, two found the fact to a
    #: rephrase most often (0.79 of 200 of CounterFact's training part; 15 layers: 0.48).
    LAYERS: ClassVar[int] = 2

    def __init__(self, bench: Workbench, settings: Mapping[str, Any]) -> None:
        settings = dict(settings)
        self.demonstrations = settings.pop("demonstrations", 1000)
        if not isinstance(self.demonstrations, int) or self.demonstrations < 1:
            raise SettingsError(
                f"IKE's setting 'demonstrations' is {self.demonstrations!r}; it must be a whole "
                "number above zero."
            )
        super().__init__(bench, settings)
        self.note = "a question is asked after the stream's fact with the most similar prompt"
        if not self.hparams.k:
            self.note += ", without demonstrations (k: 0)"

    @property
    def effective_settings(self) -> Mapping[str, Any]:
        encoder = self.hparams.sentence_model_name or f"first {self.LAYERS} layers of the model"
        return {
            **super().effective_settings,
            "sentence_model_name": encoder,
            "demonstrations": self.demonstrations,
        }

    @cached_property
    def facts(self) -> Facts:
        """The training records that demonstrations are made of."""
        fit = trainable(self.bench.train)
        # With k = 0 none is shown, but EasyEdit opens their file even so.
        most = self.demonstrations if self.hparams.k else 1
        return Facts(in_turn(fit, min(most, len(fit)), self.bench.seed))

    @cached_property
    def encoder(self) -> Any:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling

        device = self.bench.device
        if name := self.hparams.sentence_model_name:
            return SentenceTransformer(name, device=device)
        layers = {"num_hidden_layers": self.LAYERS}
        encoder = SentenceTransformer(self.bench.model_name, device=device, config_kwargs=layers)
        encoder[1] = Pooling(encoder[0].auto_model.config.hidden_size, "mean")
        if encoder.tokenizer.pad_token is None:
            encoder.tokenizer.pad_token = encoder.tokenizer.eos_token
        return encoder

    @cached_property
    def archive(self) -> Archive:
        encoder = self.hparams.sentence_model_name
        made_of = model_fingerprint(encoder or self.bench.model_name)
        return Archive(
            self.bench.folder,
            fingerprint(host_info().kind, encoder, self.LAYERS, made_of, self.facts),
        )

    def needs(self) -> list[Need]:
        name = self.hparams.sentence_model_name
        encoder = Need("sentence encoder", "ready", name or "the model's own first layers")
        if not self.facts:
            hint = "give training data whose records have a rephrase and a locality prompt"
            return [encoder, Need("training records", "missing", hint)]
        if self.archive.is_ready():
            return [encoder, Need("demonstrations", "ready", f"{len(self.facts)} records")]
        detail = f"{len(self.facts)} records are encoded, in about a minute on one CPU thread"
        return [encoder, Need("demonstrations", "to prepare", detail)]

    def prepare(self) -> None:
        if self.archive.is_ready():
            return
        began = time.perf_counter()
        encode_ike_facts = importlib.import_module("easyeditor.models.ike.util").encode_ike_facts
        with tempfile.TemporaryDirectory() as scratch:
            hparams = self.hparams_in(scratch)
            encode_ike_facts(self.encoder, self.facts, hparams)
            stored = pickle.loads(self.stored_in(hparams).read_bytes())
        self.bench.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.bench.folder / SENTENCES, json.dumps(stored["sentences"], indent=0))
        note = {"seconds": time.perf_counter() - began, "records": len(self.facts)}
        self.archive.write({"embeddings": torch.tensor(stored["embeddings"])}, note)

    def hparams_in(self, folder: str) -> Any:
        """Settings by which EasyEdit writes and reads demonstrations, a pickle, in this folder."""
        return replace(self.hparams, results_dir=folder, sentence_model_name=ENCODER)

    def stored_in(self, hparams: Any) -> Path:
        name = f"{ENCODER}_{type(self.facts).__name__}_{len(self.facts)}.pkl"
        return Path(hparams.results_dir, hparams.alg_name, "embedding", name)

    def start(self, model: Any) -> None:
        if not self.archive.is_ready():
            raise RuntimeError("IKE's demonstrations are not encoded yet: call prepare first.")
        super().start(model)
        self.contexts: list[str] = []
        self.prompts: list[Tensor] = []  # their embeddings, [1, size] each
        self.asked: dict[str, str] = {}
        self.scratch = tempfile.TemporaryDirectory()
        # What EasyEdit unpickles has been pickled here, by this process.
        hparams = self.hparams_in(self.scratch.name)
        embeddings = self.archive.read()["embeddings"].numpy()
        sentences = json.loads((self.bench.folder / SENTENCES).read_text())
        file = self.stored_in(hparams)
        file.parent.mkdir(parents=True)
        file.write_bytes(pickle.dumps({"sentences": sentences, "embeddings": embeddings}))

    def edit(self, requests: Sequence[Request]) -> None:
        hparams = self.hparams_in(self.scratch.name)
        for request in requests:
            with self.encoder_of_host():
                examples = self.function(
                    self.model, self.bench.tok, dict(request), hparams, train_ds=self.facts
                )
            fact = f"New Fact: {request['prompt']} {request['target_new']}\nPrompt: "
            self.contexts.append("".join(examples) + fact)
            self.prompts.append(self.encode(request["prompt"]))
        self.asked.clear()

    def ask(self, prompt: str) -> str:
        """The prompt after the fact whose own prompt is most similar, and its demonstrations."""
        if not self.contexts:
            return prompt
        if prompt not in self.asked:
            nearest = (torch.cat(self.prompts) @ self.encode(prompt).T).argmax()
            self.asked[prompt] = self.contexts[int(nearest)] + prompt
        return self.asked[prompt]

    def encode(self, text: str) -> Tensor:
        """[1, size], of length one."""
        return normalize(
            self.encoder.encode([text], convert_to_tensor=True, show_progress_bar=False).float(),
            dim=-1,
        )

    @contextmanager
    def encoder_of_host(self) -> Iterator[None]:
        """Have EasyEdit use the encoder that is loaded, where it would load one for each edit."""
        host: Any = importlib.import_module("easyeditor.models.ike.ike_main")
        own = host.SentenceTransformer
        host.SentenceTransformer = lambda name: self.encoder
        try:
            yield
        finally:
            host.SentenceTransformer = own

    def state_bytes(self) -> int:
        """Texts in UTF-8, and embeddings."""
        embeddings = sum(t.numel() * t.element_size() for t in self.prompts)
        return embeddings + sum(len(text.encode()) for text in self.contexts)

    def stop(self) -> None:
        self.scratch.cleanup()
        del self.scratch, self.contexts, self.prompts, self.asked
        super().stop()
