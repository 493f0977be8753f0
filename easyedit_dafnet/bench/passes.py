"""Passes of many texts through a language model: what it puts first, goes on with, thinks likely.

Texts of about equal length share a pass. On a CPU, where arithmetic is what costs, texts that begin
alike share their beginning too: they become the branches of a tree, whose tokens lie in one row,
each seeing those above it only. A model that cannot be asked so is found out once, by a plain pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from ..language_model import TOLERANCE, UNFIT, at_targets, inference_mode_of, window
from ..records import context_length
from .answers import natural_stop, said

# Tokens that share a pass, and tokens of padding that cost as much as another pass.
BATCH_TOKENS, PASS_TOKENS = 1024, 24
BATCH_TOKENS_ON_ACCELERATORS, PASS_TOKENS_ON_ACCELERATORS = 16384, 1024
# A tree's attention grows with the square of its tokens.
TREE_TOKENS = 256

Row = Sequence[int]


@dataclass(frozen=True)
class Asked:
    """Tokens of a text, and from which one on the model is asked what comes next."""

    ids: Row
    first: int


class Passes:
    """Runs models; what shares a pass depends on the texts alone, not on the model's weights.

    batch_tokens: tokens that share a pass, with their padding. A text longer than the model's
    context loses its first tokens.
    """

    def __init__(self, tok: Any, batch_tokens: int | None = None) -> None:
        self.tok = tok
        self.batch_tokens = batch_tokens

    # ---- most probable tokens -------------------------------------------------------------------

    @torch.no_grad()
    def most_probable(
        self, model: Any, texts: Sequence[Asked], one_by_one: bool = False
    ) -> list[list[int]]:
        """The token that the model puts first after each token of a text from `first` on."""
        limit = context(model)
        texts = [Asked(t.ids[-limit:], max(t.first - max(len(t.ids) - limit, 0), 0)) for t in texts]
        with inference_mode_of(model):
            if not one_by_one and self._trees_pay(model, texts):
                return self._along_trees(model, texts)
            return self._side_by_side(model, texts, one_by_one)

    def _side_by_side(
        self, model: Any, texts: Sequence[Asked], one_by_one: bool
    ) -> list[list[int]]:
        found: list[list[int]] = [[]] * len(texts)
        for batch in self._batches(model, [t.ids for t in texts], one_by_one):
            ids, mask = padded([texts[i].ids for i in batch], "right")
            targets = mask.bool()
            for target, i in zip(targets, batch, strict=True):
                target[: texts[i].first] = False
            best = logits_at(model, targets, input_ids=ids, attention_mask=mask).argmax(-1).cpu()
            counts = targets.sum(1).tolist()
            for i, part in zip(batch, best.split(counts), strict=True):
                found[i] = part.tolist()
        return found

    def _along_trees(self, model: Any, texts: Sequence[Asked]) -> list[list[int]]:
        found: list[list[int]] = [[]] * len(texts)
        for tree in trees(texts, min(self.batch_tokens or TREE_TOKENS, TREE_TOKENS)):
            targets, logits = tree.logits(model)
            best = torch.zeros(len(targets), dtype=torch.long)
            best[targets] = logits.argmax(-1).cpu()
            for i, path in tree.paths.items():
                found[i] = best[path[texts[i].first :]].tolist()
        return found

    def _trees_pay(self, model: Any, texts: Sequence[Asked]) -> bool:
        """Whether there is much to share, on a CPU, in a model that takes trees."""
        lengths = [len(text.ids) for text in texts]
        return (
            device_of(model).type == "cpu"
            and sum(lengths) > TREE_TOKENS
            and is_plain(model)
            and max(lengths) <= min(TREE_TOKENS, window(model.config))
            and _takes_trees(model)
        )

    # ---- generated texts ------------------------------------------------------------------------

    def generate(
        self, model: Any, prompts: Sequence[Row], max_new_tokens: int, one_by_one: bool = False
    ) -> list[str]:
        """What the model says after each prompt: greedy, until it stops of itself.

        It stops at an end token, a new line or the end of a sentence; the stop is left out. Shorter
        prompts are padded on the left, which models without attention see: ask them one by one.
        """
        texts = self.continuations(model, prompts, max_new_tokens, one_by_one, [_HaveStopped])
        return [said(text) for text in texts]

    @torch.no_grad()
    def continuations(
        self,
        model: Any,
        prompts: Sequence[Row],
        max_new_tokens: int,
        one_by_one: bool = False,
        stops: Sequence[type[_HaveStopped]] = (),
    ) -> list[str]:
        """The greedy continuation of each prompt as it is, up to an end token if there is one.

        stops: what else may end it.
        """
        room = max(context(model) - max_new_tokens, 1)
        prompts = [ids[-room:] for ids in prompts]
        found = [""] * len(prompts)
        with inference_mode_of(model):
            for batch in self._batches(model, prompts, one_by_one, max_new_tokens):
                criteria = StoppingCriteriaList(stop(self.tok) for stop in stops)
                rows = [prompts[i] for i in batch]
                texts = self._continuations(model, rows, max_new_tokens, criteria)
                for i, text in zip(batch, texts, strict=True):
                    found[i] = text
        return found

    def _continuations(
        self, model: Any, prompts: Sequence[Row], max_new_tokens: int, criteria: Any
    ) -> list[str]:
        ids, mask = padded(prompts, "left")
        device = device_of(model)
        ends = end_tokens(self.tok, model)
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            # Greedy, whatever the model's own settings are.
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
            use_cache=True,
            stopping_criteria=criteria,
        )
        rows = output[:, ids.shape[1] :].tolist()
        cuts = [next((t for t, token in enumerate(row) if token in ends), None) for row in rows]
        spoken = [row[:cut] for row, cut in zip(rows, cuts, strict=True)]
        return decode(self.tok, spoken)

    # ---- plain text -----------------------------------------------------------------------------

    @torch.no_grad()
    def negative_log_likelihood(
        self, model: Any, texts: Sequence[Row], one_by_one: bool = False
    ) -> tuple[float, int]:
        """Of all tokens but each text's first: the sum in nats, and how many tokens those are."""
        total, count = 0.0, 0
        with inference_mode_of(model):
            for batch in self._batches(model, texts, one_by_one):
                ids, mask = padded([texts[i] for i in batch], "right")
                targets = mask[:, 1:].bool()
                logits = logits_at(
                    model, F.pad(targets, (0, 1)), input_ids=ids, attention_mask=mask
                )
                wanted = ids[:, 1:][targets].to(logits.device)
                total += F.cross_entropy(logits.float(), wanted, reduction="sum").item()
                count += len(wanted)
        return total, count

    def _batches(
        self, model: Any, rows: Sequence[Row], one_by_one: bool = False, more: int = 0
    ) -> Iterator[list[int]]:
        """Numbers of rows that share a pass, shorter rows first; `more` tokens join each row.

        A longer row joins while padding the others is cheaper than passes of its own.
        """
        on_cpu = device_of(model).type == "cpu"
        most = self.batch_tokens or (BATCH_TOKENS if on_cpu else BATCH_TOKENS_ON_ACCELERATORS)
        allowed = (PASS_TOKENS if on_cpu else PASS_TOKENS_ON_ACCELERATORS) * (1 + more)
        batch: list[int] = []
        for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
            length = len(rows[i])
            padding = sum(length - len(rows[j]) for j in batch)
            full = (len(batch) + 1) * (length + more) > most
            if batch and (one_by_one or full or padding > allowed):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch


class _HaveStopped(StoppingCriteria):
    """Ends rows whose text has stopped, and with the last of them the batch.

    It is asked first after one new token. What is before that may be longer than the prompt, as of
    methods that put the edit before it.
    """

    def __init__(self, tok: Any) -> None:
        self.tok = tok
        self.start: int | None = None
        self.stopped: list[bool] = []

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.start = input_ids.shape[1] - 1 if self.start is None else self.start
        rows = input_ids[:, self.start :].tolist()
        self.stopped = self.stopped or [False] * len(rows)
        going = [i for i, stopped in enumerate(self.stopped) if not stopped]
        texts = decode(self.tok, [rows[i] for i in going])
        for i, text in zip(going, texts, strict=True):
            self.stopped[i] = natural_stop(text) is not None
        return torch.tensor(self.stopped, device=input_ids.device)


# -- Trees ----------------------------------------------------------------------------------------


class Tree:
    """Texts as branches of a tree in one row of tokens.

    ids, depths: of the tokens. paths: the places of each text's tokens, by the text's number.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.depths: list[int] = []
        self.paths: dict[int, list[int]] = {}
        self.firsts: list[int] = []
        self._last: tuple[Row, list[int]] = ([], [])

    def shared(self, ids: Row) -> int:
        """How many tokens a text begins with that the last one begins with too."""
        pairs = enumerate(zip(self._last[0], ids, strict=False))
        end = min(len(self._last[0]), len(ids))
        return next((t for t, (a, b) in pairs if a != b), end)

    def add(self, number: int, text: Asked) -> None:
        shared = self.shared(text.ids)
        new = len(text.ids) - shared
        path = self._last[1][:shared] + list(range(len(self.ids), len(self.ids) + new))
        self.ids += text.ids[shared:]
        self.depths += range(shared, len(text.ids))
        self.paths[number] = path
        self.firsts.append(text.first)
        self._last = text.ids, path

    def logits(self, model: Any) -> tuple[Tensor, Tensor]:
        """The places asked for, [tokens], bool, and the logits there, [places, vocabulary]."""
        count = len(self.ids)
        targets = torch.zeros(count, dtype=torch.bool)
        visible = torch.zeros(count, count, dtype=torch.bool)
        for path, first in zip(self.paths.values(), self.firsts, strict=True):
            targets[path[first:]] = True
            places = torch.tensor(path)
            visible[places[:, None], places] = torch.ones(len(path), len(path)).tril().bool()
        mask = torch.zeros(count, count, dtype=model.dtype)
        mask.masked_fill_(~visible, torch.finfo(model.dtype).min)
        return targets, logits_at(
            model,
            targets[None],
            input_ids=torch.tensor([self.ids]),
            attention_mask=mask[None, None],
            position_ids=torch.tensor([self.depths]),
        )


def trees(texts: Sequence[Asked], most: int) -> Iterator[Tree]:
    """All texts in trees of at most `most` tokens each, or of one text that is longer."""
    tree = Tree()
    for i in sorted(range(len(texts)), key=lambda i: (list(texts[i].ids), texts[i].first)):
        ids = texts[i].ids
        if tree.ids and len(tree.ids) + len(ids) - tree.shared(ids) > most:
            yield tree
            tree = Tree()
        tree.add(i, texts[i])
    yield tree


def _takes_trees(model: Any) -> bool:
    """Whether a tree gives the logits of plain passes."""
    texts = [Asked(ids, 0) for ids in ([5, 6, 7, 8], [5, 6, 9], [10, 5])]
    tree = next(trees(texts, TREE_TOKENS))
    ids, mask = padded([t.ids for t in texts], "right")
    expected = logits_at(model, mask.bool(), input_ids=ids, attention_mask=mask).float()
    try:
        _, logits = tree.logits(model)
    except UNFIT:
        return False
    found = torch.cat([logits[tree.paths[i]] for i in range(len(texts))]).float()
    error = (found - expected).norm() / (expected - expected.mean()).norm()
    return error.item() <= TOLERANCE.get(model.dtype, 1e-4)


# -- Models ---------------------------------------------------------------------------------------


def language_model(model: Any) -> Any:
    """The transformers model in what a method returns."""
    return next((m for m in model.modules() if isinstance(m, PreTrainedModel)), model)


def is_plain(model: Any) -> bool:
    """Whether the model is transformers' own, or peft's, and not a wrapper that may do more."""
    return isinstance(model, PreTrainedModel) or hasattr(model, "peft_config")


def device_of(model: Any) -> torch.device:
    return next(model.parameters()).device


def context(model: Any) -> int:
    """Longest text in tokens."""
    return context_length(language_model(model)) or 2**30


def end_tokens(tok: Any, model: Any) -> list[int]:
    """All tokens that end a text; chat models have several."""
    config = getattr(language_model(model), "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    return [t for t in dict.fromkeys([tok.eos_token_id, *own]) if t is not None]


def decode(tok: Any, rows: Sequence[Row]) -> list[str]:
    return tok.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def padded(rows: Sequence[Row], side: str) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [n, longest]; padded with 0, which the mask leaves out."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return ids, mask


def logits_at(model: Any, targets: Tensor, **inputs: Tensor) -> Tensor:
    """Logits at the targets ([n, length], bool), row after row: [number of targets, vocabulary].

    In a model of transformers' own, the vocabulary's product is computed there only.
    """
    moved = {name: value.to(device_of(model)) for name, value in inputs.items()}

    def run(**more: Any) -> Tensor:
        output = model(**moved, **more)
        return output if isinstance(output, Tensor) else output.logits

    if is_plain(model) and model.get_output_embeddings() is not None:
        with at_targets(model, targets):
            logits = run(use_cache=False)
        if logits.shape[:2] == (1, int(targets.sum())):
            return logits[0]
    logits = run()
    return logits[targets.to(logits.device)]
