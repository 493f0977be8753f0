"""What long runs share that may be interrupted: signals, and the conditions they ran under."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
import transformers

from . import __version__


class Interrupted(KeyboardInterrupt):
    """A signal ended a run after a whole step; the message says how to go on.

    exit_code: what a shell expects of a process that such a signal ended, 130 or 143.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopSignals:
    """Within the block, the first SIGINT or SIGTERM is only noted; a second one acts as ever.

    received: the signal's number, or None so far. Outside the main thread, where Python takes no
    signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                former = signal.getsignal(number)
                # What is ignored (nohup) or handled outside Python stays so.
                if former not in (None, signal.SIG_IGN):
                    self._former[number] = former
                    signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())

    def __exit__(self, *_: object) -> None:
        self._restore()


def conditions(device: torch.device) -> dict[str, Any]:
    """What decides how a computation rounds, beside its numbers."""
    return {
        "easyedit_dafnet": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
    }


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The conditions that are others now, each as "name old -> new"."""
    return [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
