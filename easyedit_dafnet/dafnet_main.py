"""Apply DAFNet to a language model: `apply_dafnet_to_model`, with EasyEdit's signature."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoint import dafnet_for
from .dafnet import DAFNet, Past, Update
from .dafnet_hparams import DAFNetHyperParams
from .edit_history import RECORD, edit_history, record_edits, warn_if_other_model
from .edit_requests import check_requests
from .least_squares import Overshoot, Written
from .models import editable, own_precision
from .prompts import Wording, chat_form, is_chat
from .record_values import Record
from .records import (
    AS_GIVEN,
    TokenBatch,
    context_length,
    encode_worded,
    first_answers,
    in_context,
    prompt_numbers,
    token_ids,
    worded,
)
from .rehearsal import Rehearsal
from .signals import EditedModule, edit_signals
from .subjects import subject_spans
from .values import Others, improved

LOG = logging.getLogger(__name__)
STATE = "_dafnet_sequence"  # attribute of the edited model
# Edits of several threads are made one after another: their hooks would meet on one model, and
# networks that are loaded once serve all models.
ONE_AT_A_TIME = threading.RLock()

# Requests that go through the networks together. Any split gives the same change; this one
# bounds the memory of the signals. Where a rehearsal follows each edit, signal_batch_size go
# together: so many would take a minute before progress shows.
REQUESTS_AT_ONCE = 64


@dataclass(frozen=True)
class Held:
    """What a sequence of edits has come to.

    changes: by parameter name, float32, in the layout of the parameter. past: what the networks
    keep. written, rehearsal: what fusion by least squares keeps, and what is asked again.
    """

    changes: dict[str, Tensor]
    past: Past
    written: Written | None
    rehearsal: Rehearsal


class EditSequence:
    """The edits a model holds: lives on the model, so that two models never meet.

    Edited weight = original + margin * change; both parts are kept, so restoring is exact.
    A sequence goes on with its first settings of what is kept and how it is written.
    """

    def __init__(self, model: Any, dafnet: DAFNet, hparams: DAFNetHyperParams) -> None:
        self.modules: list[EditedModule] = dafnet.edited
        self.edit_bias, self.archive = dafnet.edit_bias, str(hparams.archive)
        self.written_at, self.device = dafnet.written_at, dafnet.device
        self.before = edit_history(model, self.modules)
        self.count = 0
        self.originals: dict[str, Tensor] = {
            name: model.get_parameter(name).detach().clone() for name in self.parameter_names()
        }
        changes = {
            name: torch.zeros_like(value, dtype=torch.float32)
            for name, value in self.originals.items()
        }
        written = None
        if dafnet.least_squares is not None:
            overshoot = Overshoot(hparams.margin, hparams.margin_facts, hparams.margin_decay)
            written = dafnet.least_squares.nothing_written(hparams.protection, overshoot)
        rehearsed = hparams.rehearsed if dafnet.least_squares is not None else 0
        dtype = getattr(torch, hparams.past_dtype)
        contexts = tuple(hparams.rehearsal_contexts) if rehearsed else ()
        self.other_questions = list(hparams.other_questions)
        self.others_asked = hparams.others_asked
        steps, rate = hparams.rehearsal_steps, hparams.rehearsal_rate
        rehearsal = Rehearsal(rehearsed, steps, rate, contexts, dtype)
        self.held = Held(changes, dafnet.new_past(dtype), written, rehearsal)

    @property
    def bytes_per_edit(self) -> int:
        """Memory that each edit takes for good: keys, values and score keys, all modules."""
        held = self.held
        layers = [layer for network in held.past.values() for layer in network]
        kept = held.written.bytes_per_edit if held.written else 0
        kept += held.rehearsal.bytes_per_edit
        return kept + sum(layer.bytes_per_edit for layer in layers)

    @property
    def constant_bytes(self) -> int:
        """Memory that is taken however many edits there are.

        The original weights and their changes; with fusion by least squares, the inverses too.
        """
        tensors = [*self.originals.values(), *self.held.changes.values()]
        kept = self.held.written.constant_bytes if self.held.written else 0
        return kept + sum(t.numel() * t.element_size() for t in tensors)

    def parameter_names(self) -> list[str]:
        names = [m.weight_name for m in self.modules]
        return names + ([m.bias_name for m in self.modules] if self.edit_bias else [])

    def _value(self, name: str, change: Tensor, like: Tensor, written: Written | None) -> Tensor:
        """The edited weight, on the device and of the type of `like`."""
        original, change = (t.to(like.device) for t in (self.originals[name], change))
        margin = written.margin if written else 1.0
        # Rounded twice everywhere: one fused step would differ in the last bit between devices.
        return (change * margin).add_(original.float()).to(like.dtype)

    def _values(self, model: Any, held: Held) -> dict[str, Tensor]:
        """All edited weights, by parameter name."""
        return {
            name: self._value(name, change, model.get_parameter(name), held.written)
            for name, change in held.changes.items()
        }

    def is_of(self, dafnet: DAFNet, archive: str) -> bool:
        """Whether these networks made the edits; those of a folder may have been trained anew."""
        return (self.archive, self.written_at) == (archive, dafnet.written_at)

    def is_held_by(self, model: Any) -> bool:
        """Whether the model's weights are those that this sequence has written."""
        held = self.held
        return all(
            torch.equal(p := model.get_parameter(name), self._value(name, change, p, held.written))
            for name, change in held.changes.items()
        )

    def is_restored_in(self, model: Any) -> bool:
        return all(
            torch.equal(p := model.get_parameter(name), original.to(p.device, p.dtype))
            for name, original in self.originals.items()
        )

    def _changed(
        self, changes: Mapping[str, Tensor], updates: Iterable[Update]
    ) -> dict[str, Tensor]:
        """The changes after updates, one a module; those given stay as they are."""
        fresh: dict[str, Tensor] = {}
        with torch.no_grad():
            for module, update in zip(self.modules, updates, strict=True):
                fresh |= update.changed(module, changes)
        return fresh

    def _fused(
        self,
        model: Any,
        dafnet: DAFNet,
        batches: Sequence[TokenBatch],
        hparams: DAFNetHyperParams,
        held: Held,
    ) -> Held:
        """What is held after the batch's edits; `held` stays as it is, but for its rehearsal."""
        size, forms = hparams.signal_batch_size, 1 + len(held.rehearsal.contexts)
        batch, batches, asked = batches[0], batches[:forms], batches[forms:]
        unedited = {
            name: original.to((p := model.get_parameter(name)).device, p.dtype)
            for name, original in self.originals.items()
        }
        signals = edit_signals(model, self.modules, batch, unedited, size)
        solver, written, changes = dafnet.least_squares, held.written, held.changes
        if solver is None or written is None:
            with torch.no_grad():
                updates, past = dafnet(signals, held.past)
            return replace(held, changes=self._changed(changes, updates), past=cast(Past, past))
        with torch.no_grad():
            values, past = dafnet.values(signals, held.past)
            keys = [s.x.to(dafnet.device) for s in signals]
        others = Others(asked, hparams.others_weight) if asked else None
        values = improved(
            model, self.modules, batch, values, unedited,
            hparams.value_steps, hparams.value_rate, size,
            others=others,
        )  # fmt: skip
        numbers = prompt_numbers(batch).to(dafnet.device)
        one = torch.ones((), device=dafnet.device, dtype=torch.float32)
        # Edits that are followed by a rehearsal are written one by one, so that any split agrees.
        together = 1 if held.rehearsal.earlier else len(batch)
        for start in range(0, len(batch), together):
            rows = slice(start, start + together)
            key = [k[rows] for k in keys]
            before = [
                changes[m.weight_name].T if m.transposed else changes[m.weight_name]
                for m in self.modules
            ]
            before = [change.to(dafnet.device) for change in before]
            steps, written = solver.write(
                key, [v[rows] for v in values], numbers[rows], written, before
            )
            changes = self._changed(changes, [Update(a, b, one) for a, b in steps])
            if held.rehearsal.earlier:
                due, texts, key = held.rehearsal.turn([b[rows] for b in batches], key)
                for as_written in (False, True):
                    lacking = self._lacking(
                        model, texts, key, written, changes, held.rehearsal, as_written
                    )
                    if any(value.any() for value in lacking):
                        steps, written = written.corrected(key, lacking, due)
                        changes = self._changed(changes, [Update(a, b, one) for a, b in steps])
        return replace(held, changes=changes, past=cast(Past, past), written=written)

    def take_up(self, model: Any, held: Held, count: int) -> None:
        """Go on from what another sequence held over the same unedited weights, and write those.

        Args:
            model: The unedited one.
            held: The other's, on any device; it becomes this one's.
            count: How many edits it held.
        """
        self.held = replace(
            moved(held, self.device),
            changes={name: held.changes[name].to(t.device) for name, t in self.originals.items()},
        )
        self.count = count
        write_weights(model, self._values(model, self.held))
        record_edits(model, self.modules, self.before, self.count)

    def _lacking(
        self,
        model: Any,
        texts: TokenBatch,
        keys: Sequence[Tensor],
        written: Written,
        changes: Mapping[str, Tensor],
        rehearsal: Rehearsal,
        as_written: bool,
    ) -> list[Tensor]:
        """[n, d_out], one a module: what the values of edits lack on the model as it is edited."""
        weights = {
            name: self._value(name, change, model.get_parameter(name), written)
            for name, change in changes.items()
        }
        nothing = [
            k.new_zeros(len(texts), m.d_out) for k, m in zip(keys, self.modules, strict=True)
        ]
        spreads, share = written.spreads(keys) if as_written else (None, 1.0)
        lacking = improved(
            model, self.modules, texts, nothing, weights,
            rehearsal.steps_for(texts, as_written), rehearsal.rate, len(texts), spreads,
        )  # fmt: skip
        return [value / share for value in lacking]

    def encode(
        self,
        tok: Any,
        requests: Sequence[Mapping[str, Any]],
        model: Any,
        wording: Wording = AS_GIVEN,
    ) -> list[TokenBatch]:
        """The requests, as they are and after each context of the rehearsal that leaves room.

        Then `others_asked` other questions about their subjects, each asked for one token.
        """
        solved = self.held.written is not None
        given = requests = worded(tok, requests, wording, solved)
        batches = [encode_worded(tok, requests, model, solved)]
        if (at := batches[0].at) is not None and (first := (at == 0).nonzero().flatten().tolist()):
            # There models without a begin token take any token for the same key.
            LOG.warning(
                "%d of %d requests, such as %r, have their subject in the first token, where an "
                "edit may not hold; word the prompt so that the subject comes later.",
                len(first), len(requests), requests[first[0]]["prompt"],
            )  # fmt: skip
        lengths, limit = batches[0].attention_mask.sum(1).tolist(), context_length(model)
        for context in self.held.rehearsal.contexts:
            more = len(token_ids(tok, [context])[0])
            after = [
                in_context(request, context) if limit is None or length + more < limit else request
                for request, length in zip(requests, lengths, strict=True)
            ]
            batches.append(encode_worded(tok, after, model, solved))
        if solved and self.others_asked:
            each = [self._other_questions(tok, request) for request in given]
            batches += [
                first_answers(encode_worded(tok, questions, model, True))
                for questions in zip(*each, strict=True)
            ]
        return batches

    def _other_questions(self, tok: Any, request: Record) -> list[Record]:
        """Other questions about the request's subject, always the same ones."""
        subject = request["prompt"][slice(*subject_spans(request)[-1])]
        draw, asked = random.Random(request["prompt"]), []
        for question in draw.sample(self.other_questions, self.others_asked):
            prompt = question.replace("{}", subject)
            prompt = chat_form(tok, prompt) if is_chat(request["prompt"]) else prompt
            fields = {**request, "prompt": prompt, "subject": subject}
            asked.append(Record(fields, f"{request.name}, asked {question!r}"))
        return asked

    def extend(
        self, model: Any, dafnet: DAFNet, batches: Sequence[TokenBatch], hparams: DAFNetHyperParams
    ) -> None:
        """Add edits, given as `encode` has them, to the sequence and write the weights.

        Nothing changes, in the sequence or the model, unless all of it has succeeded.
        """
        if self.device != dafnet.device:  # the model was moved, and is followed
            self.held, self.device = moved(self.held, dafnet.device), dafnet.device
        held = replace(self.held, rehearsal=self.held.rehearsal.copy())
        together = hparams.signal_batch_size if held.rehearsal.earlier else REQUESTS_AT_ONCE
        if dafnet.fusion_order == "released":
            together = len(batches[0])
        groups = list(zip(*(batch.split(together) for batch in batches), strict=True))
        for group in tqdm(groups, desc="DAFNet edits", disable=len(groups) < 3):
            held = self._fused(model, dafnet, group, hparams, held)
        values = self._values(model, held)
        for name, value in values.items():
            # One that is not finite is an extreme. Several times faster than asking each.
            if not torch.stack([value.amin(), value.amax()]).isfinite().all():
                raise FloatingPointError(
                    f"The update of {name} is not finite, so the model was left as it was; check "
                    "the archive and the request."
                )
        try:
            write_weights(model, values)
        except BaseException:  # Ctrl-C, too, comes between two weights
            write_weights(model, self._values(model, self.held))
            raise
        self.held = held
        self.count += len(batches[0])
        record_edits(model, self.modules, self.before, self.count)
        LOG.debug(
            "%d edits held: %.1f MB, and %.1f kB an edit",
            self.count,
            self.constant_bytes / 1e6,
            self.bytes_per_edit / 1e3,
        )


def write_weights(model: Any, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)


def moved(held: Any, device: torch.device) -> Any:
    """What is held with all its tensors on the device."""
    match held:
        case Tensor():
            return held.to(device)
        case Mapping():
            return {key: moved(value, device) for key, value in held.items()}
        case list():
            return [moved(value, device) for value in held]
    if is_dataclass(held) and not isinstance(held, type):
        parts = {f.name: moved(getattr(held, f.name), device) for f in fields(held)}
        return replace(held, **parts)
    return held


def _sequence(model: Any, dafnet: DAFNet, hparams: DAFNetHyperParams) -> EditSequence:
    """The sequence that the model holds, or a new one when its weights are unedited."""
    archive = str(hparams.archive)
    held: EditSequence | None = getattr(model, STATE, None)
    if held is not None and held.is_held_by(model):
        if not held.is_of(dafnet, archive):
            since = ", which was replaced since" if held.archive == archive else ""
            raise ValueError(
                f"This model holds {held.count} edits made with archive {held.archive!r}{since}; "
                f"restore its weights before editing it with {archive!r}."
            )
        return held
    if held is not None and not held.is_restored_in(model):
        LOG.warning(
            "The edited weights were changed by something else since the last DAFNet edit; they "
            "are taken as the unedited ones, and a new sequence starts."
        )
    if held is None:
        warn_if_other_model(dafnet, model)
    return EditSequence(model, dafnet, hparams)


def start_sequence(model: Any, hparams: DAFNetHyperParams) -> EditSequence:
    """The sequence that the model's next edits go on with.

    Raises ModelError, SettingsError or CheckpointError where settings, archive and model do not
    fit.
    """
    model, _ = editable(model)
    sequence = _sequence(model, dafnet_for(model, hparams), hparams)
    setattr(model, STATE, sequence)
    return sequence


def forget_edits(model: Any) -> None:
    """Take off the model what is kept of its edits; its weights stay as they are."""
    for holder, name in ((model, STATE), (model.config, RECORD)):
        if hasattr(holder, name):
            delattr(holder, name)


@contextmanager
def _edit() -> Iterator[None]:
    with ONE_AT_A_TIME, own_precision():
        yield


@_edit()
def apply_dafnet_to_model(
    model: Any,
    tok: Any,
    requests: Sequence[Mapping[str, Any]] | Iterable[Mapping[str, Any]],
    hparams: DAFNetHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    **kwargs: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """Edit the model with all requests, after those that it holds already.

    The edits live in the model's own parameters. A sequence goes on for as long as the weights
    stay as DAFNet left them, and starts afresh once the original weights are back. The model may be
    inside torch's DataParallel, DistributedDataParallel or torch.compile: then the one inside is
    edited, the given object comes back, and the names of the weights fit it. Threads edit one
    after another; a model must not be asked by another thread while it is edited.

    requests: dicts with `prompt` and `target_new`; with fusion by least squares also `subject`,
    which is guessed where it is not given. copy: edit a copy, leave the model alone.
    Returns the edited model and, with return_orig_weights, {parameter name: unedited tensor},
    the weights from before the first edit of the sequence.
    keep_original_weight is for hosts that restore only when it is set; it changes nothing here.

    Raises RequestError, ModelError, SettingsError, CheckpointError or FloatingPointError before
    any weight has changed.
    """
    requests = check_requests(requests)
    given = model
    model, prefix = editable(given)
    dafnet = dafnet_for(model, hparams)
    if copy:
        given = deepcopy(given)
        model, _ = editable(given)
    sequence = _sequence(model, dafnet, hparams)
    sequence.extend(model, dafnet, sequence.encode(tok, requests, model, hparams.wording), hparams)
    setattr(model, STATE, sequence)
    originals = sequence.originals if return_orig_weights else {}
    return given, {prefix + name: value.clone() for name, value in originals.items()}
