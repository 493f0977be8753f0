"""A run of the command `edit`, once its settings and facts are read: edit, ask, write, resume."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer

from .dafnet_hparams import DAFNetHyperParams, SettingsError
from .dafnet_main import EditSequence, apply_dafnet_to_model, start_sequence
from .edit_check import SHOWN, Check, Findings, check_probes
from .edit_command import check_place, report_of, usable
from .edit_journal import Journal, identity
from .edited_model import DeltaFile, ModelFolder, Output, load_model, one_line
from .files import OutputError
from .records import encode_requests
from .resuming import Interrupted, StopSignals

LOG = logging.getLogger(__name__)
FORMAT = "easyedit_dafnet edit report/1"
ROOM = 1.05  # of the weights' size, for what is written beside them
# What the message of an error is enough for. The others are shown as they are, with a traceback.
KNOWN = (ValueError, OSError, FloatingPointError, SafetensorError)


class EditingStopped(ValueError):
    """Something went wrong after edits had been made; the message says where they are."""


class EditRun:
    """Facts are edited one after another, asked before and after, and the outcome is written.

    Args:
        args: Of the command.
        hparams: The settings.
        records: The facts, checked as far as no tokenizer is needed.
        left_out: What was left out of them so far, and why.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        hparams: DAFNetHyperParams,
        records: Sequence[dict[str, Any]],
        left_out: list[str],
    ) -> None:
        self.args, self.hparams, self.left_out = args, hparams, left_out
        self.output: Output = (
            ModelFolder(args.out) if args.out else DeltaFile(args.delta, report_of(args.delta))
        )
        self.journal = Journal(args.out or args.delta)
        self.dtype = args.dtype or ("float16" if hparams.fp16 else "auto")
        hparams.torch_device  # noqa: B018, refused before anything is loaded
        self.tok = self._tokenizer()
        self.requests = usable(records, self._encodable, args.skip_unfit, left_out)
        self.check = Check(self.tok, self.requests, hparams.wording)
        self.stop = StopSignals()

    def _tokenizer(self) -> Any:
        name = self.hparams.tokenizer_name
        try:
            self.config = AutoConfig.from_pretrained(self.hparams.model_name)
            return AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"The model {self.hparams.model_name!r} or the tokenizer {name!r} cannot be loaded "
                f"({one_line(error)})."
            ) from None

    def _encodable(self, requests: Sequence[Any]) -> list[Any]:
        """The requests. Raises RequestError about those that the model cannot be edited with."""
        check_probes(requests)
        model = SimpleNamespace(config=self.config)
        at_subject = self.hparams.fusion == "least_squares"
        encode_requests(self.tok, requests, model, at_subject, self.hparams.wording)
        return list(requests)

    # ---- the run --------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises one of KNOWN before the first edit, EditingStopped or Interrupted after it."""
        self._tell_left_out(self.left_out, "left out")
        self.journal.open(self.args.resume, self.args.fresh)
        model = load_model(self.hparams, self.dtype)
        sequence = start_sequence(model, self.hparams)
        check_place(self.args, int(ROOM * self.output.size(model, sequence)))
        self.output.try_out(model, self.tok)
        self.journal.start(identity(self.hparams, model, self.requests), sequence, model)
        kept = self.journal.kept
        with self._kept_in_the_journal(sequence), self.stop:
            if not self.journal.done:
                kept |= {"before": self._ask(model, "unedited"), "failed": {}}
            self._edit(model, sequence)
            after = self._ask(model, "edited", sequence)
            failed = {int(i) for i in kept["failed"]}
            findings = self.check.findings(kept["before"], after, failed)
            where = self.output.write(model, self.tok, sequence, self._report(model, findings))
        self.journal.remove()
        self._tell(findings)
        print(where)

    def _edit(self, model: Any, sequence: EditSequence) -> None:
        journal, kept = self.journal, self.journal.kept
        bar = tqdm(total=len(self.requests), initial=journal.done, desc="DAFNet edits")
        with bar:
            for i in range(journal.done, len(self.requests)):
                try:
                    apply_dafnet_to_model(model, self.tok, [self.requests[i]], self.hparams)
                except FloatingPointError as error:
                    if not self.args.skip_unfit:
                        raise
                    kept["failed"][str(i)] = one_line(error)
                journal.done = i + 1
                bar.update()
                self._look(sequence)
                if journal.is_due:
                    journal.save(sequence)

    def _look(self, sequence: EditSequence | None) -> None:
        """Stop where a signal asks for it, once the edits so far are in the journal."""
        number = self.stop.received  # read once: it may come at any moment
        if not number:
            return
        if sequence is not None and self.journal.saved < self.journal.done:
            self.journal.save(sequence)
        raise Interrupted(f"Editing was stopped; {self._where()}", 128 + number)

    def _ask(self, model: Any, which: str, sequence: EditSequence | None = None) -> dict[str, str]:
        with tqdm(total=len(self.check), desc=f"Asking the {which} model", leave=False) as bar:

            def between(count: int) -> None:
                bar.update(count)
                self._look(sequence)

            return self.check.ask(model, between)

    @contextmanager
    def _kept_in_the_journal(self, sequence: EditSequence) -> Iterator[None]:
        """Where the block fails, the edits go into the journal, and the message names it."""
        journal = self.journal
        try:
            yield
        except Exception as error:
            if journal.saved < journal.done:
                with suppress(OutputError):
                    journal.save(sequence)
            if not journal.saved:
                journal.remove()
                raise
            if isinstance(error, KNOWN):
                raise EditingStopped(f"{one_line(error)} {self._where()}") from error
            LOG.error("%s", self._where())
            raise

    def _where(self) -> str:
        return (
            f"{self.journal.saved} of {len(self.requests)} edits are in {self.journal.path}. To go "
            "on from there, give the same command with --resume."
        )

    # ---- what is told ---------------------------------------------------------------------------

    def _tell_left_out(self, reasons: Sequence[str], what: str) -> None:
        if reasons:
            more = f"\n  and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
            shown = "".join(f"\n  {reason}" for reason in reasons[:SHOWN])
            LOG.warning("%d facts were %s:%s%s", len(reasons), what, shown, more)

    def _tell(self, findings: Findings) -> None:
        self._tell_left_out(list(self.journal.kept["failed"].values()), "not edited")
        for text in (*findings.examples(self.args.show), findings.summary(), *findings.misses()):
            print(text)
        if not findings.mostly_hold:
            published = self.hparams.fusion == "mean"
            LOG.warning(
                "Most of these edits do not hold.%s",
                " The strong form, such as DAFNet/smollm2-135m-strong, holds more." * published,
            )

    def _report(self, model: Any, findings: Findings) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "facts": self.args.facts,
            "model": self.hparams.model_name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "archive": self.hparams.archive,
            "settings": asdict(self.hparams),
            "conditions": self.journal.conditions,
            "counts": findings.counts(),
            "left_out": [*self.left_out, *self.journal.kept["failed"].values()],
            "edits": findings.facts,
        }
