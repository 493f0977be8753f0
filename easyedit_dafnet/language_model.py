"""The language model in two parts: the layers below the first edited one, and those from it on.

Edits never change what the lower layers compute, so training runs them once per text and goes on
from what they gave. The upper layers take several texts side by side, without padding, and the
vocabulary logits are computed only where a target is predicted.

Nothing here knows an architecture: hooks on the layers put in the kept hidden states and an
attention mask that keeps the texts apart, and a plain run of the model says, once, whether the
outcome is the same.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .records import IGNORE, TokenBatch, context_length

LOG = logging.getLogger(__name__)
# With fewer rows, a CPU sums the terms of the backward product with the vocabulary's weights one
# after another: ten times the rounding, and normalised signals multiply it by hundreds.
FEWEST_ROWS = 4
# Texts that share a pass where nobody says how many.
TEXTS_AT_ONCE = 24
# Attention between texts that share a pass is wasted: it grows with the square of the length.
MAX_TOKENS = 2048
# Bytes of log probabilities that are kept for a text; of more, only what they are made from is.
LARGEST_PREDICTIONS = 32_000_000
# What a layer raises that is given another mask or start than it can take.
UNFIT = (RuntimeError, TypeError, ValueError, IndexError)
# Relative difference of the logits from a plain run; another mask or position gives about 1.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@contextmanager
def inference_mode_of(model: Any) -> Iterator[None]:
    """No dropout, no gradients to the model's own parameters, and outputs that have names.

    All is as before afterwards.
    """
    named = {"return_dict": True, "torchscript": False}
    config = getattr(model, "config", None)
    outputs = {name: getattr(config, name) for name in named if hasattr(config, name)}
    training = [module for module in model.modules() if module.training]
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        for name in outputs:
            setattr(config, name, named[name])
        if training:
            model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for name, value in outputs.items():
            setattr(config, name, value)
        for module in training:
            module.training = True
        for parameter in wanted:
            parameter.requires_grad_(True)


class _Reached(Exception):
    """Ends a forward pass at the place whose input was asked for."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


@contextmanager
def at_targets(model: Any, targets: Tensor, stop: bool = False) -> Iterator[None]:
    """The output embeddings see the hidden states at the targets ([n, length], bool) only.

    `stop` ends the pass there: _Reached holds the hidden states, [number of targets, d].
    """

    count = int(targets.sum())

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        hidden = args[0][targets.to(args[0].device)]
        if stop:
            raise _Reached(hidden)
        if count < FEWEST_ROWS:
            more = hidden[-1:].detach().expand(FEWEST_ROWS - count, -1)
            hidden = torch.cat([hidden, more])
        return (hidden[None],)

    def cut(_: nn.Module, __: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        return logits if count >= FEWEST_ROWS else logits[:, :count]

    head = model.get_output_embeddings()
    with ExitStack() as stack:
        stack.callback(head.register_forward_pre_hook(select).remove)
        stack.callback(head.register_forward_hook(cut).remove)
        yield


def answer_width(model: Any) -> int:
    """Width of what the output embeddings see."""
    return int(model.get_output_embeddings().weight.shape[-1])


def target_logits(model: Any, batch: TokenBatch, parameters: Mapping[str, Tensor]) -> Tensor:
    """Logits at the target positions, [number of targets, vocabulary], in row order.

    With the given parameters in place of the model's own. A plain pass with padding.
    """
    with at_targets(model, batch.targets):
        return functional_call(
            model,
            dict(parameters),
            kwargs={
                "input_ids": batch.input_ids,
                "attention_mask": batch.attention_mask,
                "use_cache": False,
            },
        ).logits[0]


@dataclass(frozen=True)
class Text:
    """A text with the tokens to be predicted in it, and what the unedited model makes of it.

    ids, labels: [length], labels as in TokenBatch. hidden: [length, d], the input of the first
    edited layer. log_probs: [targets, vocabulary], float32, what the unedited model predicts at
    the targets; or final: [targets, d], the hidden states that it predicts them from. at: [1], the
    token that an edit is written at. Each is None where it is not kept.
    """

    ids: Tensor
    labels: Tensor
    hidden: Tensor | None = None
    log_probs: Tensor | None = None
    final: Tensor | None = None
    at: Tensor | None = None

    @property
    def target_labels(self) -> Tensor:
        return self.labels[self.labels != IGNORE]

    def to(self, device: torch.device | str) -> Text:
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if v is not None})

    def __len__(self) -> int:
        return len(self.ids)


def texts_of(batch: TokenBatch) -> list[Text]:
    """The rows of a batch without their padding."""
    lengths = batch.attention_mask.sum(1).tolist()
    rows = zip(batch.input_ids, batch.labels, lengths, strict=True)
    return [Text(ids[:length], labels[:length]) for ids, labels, length in rows]


class LanguageModel:
    """A causal language model whose linear modules `names` are edited.

    It is not changed; callers see to evaluation mode and gradients (inference_mode_of).
    `split` says whether texts share a pass and start at the first edited layer; where a plain run
    disagrees, each text passes the whole model alone. `trimmed` is the last layer's MLP, if that
    is edited: of its outputs only those at the targets matter.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        # A CPU reads predictions faster than it computes them from the hidden states.
        self.largest_predictions = LARGEST_PREDICTIONS if self.device.type == "cpu" else 0
        self.window = window(model.config)
        self.max_tokens = min(context_length(model) or MAX_TOKENS, MAX_TOKENS)
        self.blocks, self.first = _blocks(model, names)
        self.split = False
        self.trimmed: nn.Module | None = None
        if self.blocks:
            self.signature = inspect.signature(self.blocks[0].forward)
            wanted = {"hidden_states", "attention_mask"} <= self.signature.parameters.keys()
            self.split = wanted and "position_ids" in inspect.signature(model.forward).parameters
            self.split = self.split and self._agrees_with_a_plain_run()
        if self.split:
            self.trimmed = self._tokenwise_part_of_the_last_layer(names)
            if self.trimmed is not None and not self._agrees_with_a_plain_run():
                self.trimmed = None
        else:
            LOG.warning(
                "Training runs every text alone and through all layers of this %s, which is slow: "
                "its layers cannot be started from kept hidden states.",
                type(model).__name__,
            )

    @property
    def vocabulary(self) -> int:
        return self.model.get_input_embeddings().weight.shape[0]

    def tokens_at(self, name: str, texts: Sequence[Text]) -> int:
        """How many of the texts' tokens pass the module of that name."""
        trimmed = self.trimmed is not None and self.model.get_submodule(name) in set(
            self.trimmed.modules()
        )
        return sum(len(t.target_labels) if trimmed else len(t) for t in texts)

    @torch.no_grad()
    def _agrees_with_a_plain_run(self) -> bool:
        ids = torch.arange(1, 14) % self.vocabulary
        texts = [Text(part, torch.where(part % 2 == 1, part, IGNORE)) for part in ids.split([5, 8])]
        with inference_mode_of(self.model):
            with _watched(self.blocks[0]) as calls:
                plain = [self.model(t.ids[None].to(self.device), use_cache=False) for t in texts]
            self.returns_tuple = isinstance(calls[0][1], tuple)
            rows = [p.logits[0][t.labels != IGNORE] for p, t in zip(plain, texts, strict=True)]
            try:
                texts = self._with_hidden(texts)
                self._with_hidden(texts[::-1])  # what layers leave behind must not matter
                found = self.logits(texts).float()
            except UNFIT:
                return False
        expected = torch.cat(rows).float()
        error = (found - expected).norm() / (expected - expected.mean()).norm()
        return error.item() <= TOLERANCE.get(self.model.dtype, 1e-4)

    @torch.no_grad()
    def _tokenwise_part_of_the_last_layer(self, names: Sequence[str]) -> nn.Module | None:
        """What holds all edited modules of the last layer, such as its MLP, if one thing does."""
        inside = {self.model.get_submodule(name) for name in names} & set(self.blocks[-1].modules())
        for part in self.blocks[-1].children():
            if inside and part not in inside and inside <= set(part.modules()):
                with inference_mode_of(self.model), _watched(part) as calls:
                    self.model(torch.ones(1, 2, dtype=torch.int, device=self.device))
                args, output = calls[0]
                if len(args) == 1 and isinstance(output, Tensor) and output.shape[1] == 2:
                    return part
        return None

    # ---- passes ---------------------------------------------------------------------------------

    def packs(self, texts: Sequence[Text], size: int) -> Iterator[list[Text]]:
        """The texts in order, in groups that share a pass: at most `size` texts.

        A text longer than the window of local attention keeps the model's own mask, alone.
        """
        group: list[Text] = []
        for text in texts:
            tokens = sum(map(len, group)) + len(text)
            alone = any(len(t) > self.window for t in (*group, text))
            full = len(group) == size or tokens > self.max_tokens
            if group and (full or alone or not self.split):
                yield group
                group = []
            group.append(text)
        if group:
            yield group

    @torch.no_grad()
    def with_hidden(self, texts: Sequence[Text], size: int = TEXTS_AT_ONCE) -> list[Text]:
        """The texts with the input of the first edited layer; `size` of them share a pass."""
        if not self.split:
            return list(texts)
        return [text for pack in self.packs(texts, size) for text in self._with_hidden(pack)]

    def _with_hidden(self, pack: Sequence[Text]) -> list[Text]:
        try:
            with self._apart(pack, stop_at=self.first):
                self._run(pack, {})
        except _Reached as reached:
            parts = reached.value[0].split([len(t) for t in pack])
            return [replace(t, hidden=h.clone()) for t, h in zip(pack, parts, strict=True)]
        raise AssertionError("unreachable: the first edited layer is always reached")

    @torch.no_grad()
    def with_unedited(self, texts: Sequence[Text], size: int = TEXTS_AT_ONCE) -> list[Text]:
        """The texts with their `log_probs`, or with `final` where those would be too large."""
        found = []
        for pack in self.packs(texts, size):
            counts = [len(text.target_labels) for text in pack]
            if max(counts) * self.vocabulary * torch.float32.itemsize <= self.largest_predictions:
                kept, name = self.logits(pack).float().log_softmax(-1), "log_probs"
            else:
                kept, name = self._final(pack), "final"
            parts = zip(pack, kept.split(counts), strict=True)
            found += [replace(text, **{name: part.clone()}) for text, part in parts]
        return found

    def _final(self, pack: Sequence[Text]) -> Tensor:
        try:
            with self._at(pack), at_targets(self.model, _targets(pack), stop=True):
                self._run(pack, {})
        except _Reached as reached:
            return reached.value
        raise AssertionError("unreachable: the output embeddings are always reached")

    def logits(
        self,
        texts: Sequence[Text],
        parameters: Mapping[str, Tensor] | None = None,
        trim: bool = True,
    ) -> Tensor:
        """One pass of texts that `packs` put together. Logits at their targets, [targets, V].

        trim: the last layer's MLP sees the targets only.
        """
        targets = _targets(texts)
        with ExitStack() as stack:
            stack.enter_context(self._at(texts))
            stack.enter_context(at_targets(self.model, targets))
            if trim and self.trimmed is not None:
                stack.enter_context(_trimming(self.trimmed, targets[0]))
            return self._run(texts, parameters or {})[0]

    @torch.no_grad()
    def unedited_log_probs(self, texts: Sequence[Text]) -> Tensor:
        """From what with_unedited has kept, [targets, vocabulary], text after text."""
        finals = [text.final for text in texts if text.final is not None]
        made = iter(self._from_final(finals)) if finals else iter(())
        kept = [next(made) if text.log_probs is None else text.log_probs for text in texts]
        moved = [log_probs.to(self.device) for log_probs in kept]
        return moved[0] if len(moved) == 1 else torch.cat(moved)

    def _from_final(self, finals: Sequence[Tensor]) -> Sequence[Tensor]:
        final = torch.cat(list(finals))

        def put_in(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (final[None].to(args[0].device),)

        with ExitStack() as stack:
            handle = self.model.get_output_embeddings().register_forward_pre_hook(put_in)
            stack.callback(handle.remove)
            if self.split:
                stack.enter_context(self._skipping(len(self.blocks)))
            # A token carries them past the layers, to whatever the model does to its logits.
            token = torch.zeros(1, dtype=torch.long)
            logits = self._run([Text(token, token)], {})[0]
        return logits.float().log_softmax(-1).split([len(f) for f in finals])

    def _run(self, texts: Sequence[Text], parameters: Mapping[str, Tensor]) -> Tensor:
        inputs: dict[str, Any] = {
            "input_ids": torch.cat([t.ids for t in texts])[None].to(self.device)
        }
        if len(texts) > 1:
            positions = torch.cat([torch.arange(len(t)) for t in texts])
            inputs["position_ids"] = positions[None].to(self.device)
        inputs["use_cache"] = False
        if not parameters:
            return self.model(**inputs).logits
        return functional_call(self.model, dict(parameters), kwargs=inputs).logits

    @contextmanager
    def _at(self, texts: Sequence[Text]) -> Iterator[None]:
        """From the first edited layer where the hidden states are there, else from the start."""
        kept = [t.hidden for t in texts if t.hidden is not None]
        with ExitStack() as stack:
            if kept:
                stack.enter_context(self._skipping(self.first))
            if self.split:
                stack.enter_context(self._apart(texts, torch.cat(kept) if kept else None))
            yield

    @contextmanager
    def _skipping(self, n: int) -> Iterator[None]:
        """The first n layers hand their input on."""

        def hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            return (hidden_states,) if self.returns_tuple else hidden_states

        skipped = self.blocks[:n]
        own = [block.__dict__.get("forward") for block in skipped]
        try:
            for block in skipped:
                block.forward = hand_on
            yield
        finally:
            for block, forward in zip(skipped, own, strict=True):
                block.__dict__.pop("forward", None)
                if forward is not None:  # as accelerate puts one there
                    block.forward = forward

    @contextmanager
    def _apart(
        self,
        texts: Sequence[Text],
        hidden: Tensor | None = None,
        stop_at: int | None = None,
    ) -> Iterator[None]:
        """Texts in one row do not see each other; `hidden` goes into the first edited layer."""
        lengths = torch.tensor([len(t) for t in texts])
        owner = torch.arange(len(texts)).repeat_interleave(lengths).to(self.device)
        visible = (owner[:, None] == owner[None]).tril()
        masks: dict[Any, Tensor] = {}

        def prepare(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            bound = self.signature.bind(*args, **kwargs)
            values = bound.arguments
            like = values["hidden_states"]
            if stop_at is not None and block is self.blocks[stop_at]:
                raise _Reached(like)
            if hidden is not None and block is self.blocks[self.first]:
                values["hidden_states"] = hidden[None].to(like.device, like.dtype)
            if len(texts) > 1:
                if like.device not in masks:
                    mask = torch.zeros(visible.shape, dtype=like.dtype, device=like.device)
                    lowest = torch.finfo(like.dtype).min
                    masks[like.device] = mask.masked_fill_(~visible.to(like.device), lowest)
                values["attention_mask"] = masks[like.device][None, None]
            return bound.args, bound.kwargs

        with ExitStack() as stack:
            for block in self.blocks:
                handle = block.register_forward_pre_hook(prepare, with_kwargs=True)
                stack.callback(handle.remove)
            yield


def window(config: Any) -> float:
    """Tokens that the model's local attention, if it has any, looks back."""
    config = config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if size), default=float("inf"))


def _targets(texts: Sequence[Text]) -> Tensor:
    return torch.cat([t.labels for t in texts])[None] != IGNORE


def _blocks(model: nn.Module, names: Sequence[str]) -> tuple[list[Any], int]:
    """The model's layers and the index of the first that holds one of the modules, if any do."""
    path = names[0].split(".")
    for depth, part in enumerate(path):
        if part.isdigit():
            stem = ".".join(path[:depth])
            blocks = model.get_submodule(stem)
            inside = [n.split(".") for n in names if n.startswith(f"{stem}.")]
            if isinstance(blocks, nn.ModuleList) and len(inside) == len(names):
                return list(blocks), min(int(n[depth]) for n in inside)
            break
    return [], 0


@contextmanager
def _trimming(module: nn.Module, targets: Tensor) -> Iterator[None]:
    """The module, x [1, T, d] -> y [1, T, d] token by token, computes y at `targets` [T] only."""

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (x,) = args
        return (x[:, targets.to(x.device)],)

    def put_back(_: nn.Module, __: tuple[Tensor, ...], y: Tensor) -> Tensor:
        rows = targets.nonzero()[:, 0].to(y.device)
        return y.new_zeros(1, len(targets), y.shape[-1]).index_copy(1, rows, y)

    with ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(select).remove)
        stack.callback(module.register_forward_hook(put_back).remove)
        yield


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[tuple[tuple[Any, ...], Any]]]:
    """The module's calls: positional arguments and output of each."""
    calls: list[tuple[tuple[Any, ...], Any]] = []
    handle = module.register_forward_hook(lambda _, args, output: calls.append((args, output)))
    try:
        yield calls
    finally:
        handle.remove()
