"""Timing of several ways to do one thing, taking turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import floor, log10
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return median(self.seconds)

    def __str__(self) -> str:
        """The median with the spread: 1.20 (1.18..1.31), or one number if there is but one."""
        if len(self.seconds) == 1:
            return show(self.median)
        return f"{show(self.median)} ({show(min(self.seconds))}..{show(max(self.seconds))})"


def show(seconds: float) -> str:
    """Three digits: 0.00123, 1.23, 12.3, 123."""
    return f"{seconds:.{max(0, 2 - floor(log10(max(seconds, 1e-9))))}f}"


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, until the device has finished."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for what an accelerator still has to do."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def take_turns(
    runs: Mapping[str, Callable[[int], float]], repetitions: int, patience: float
) -> dict[str, Timing]:
    """Call each run with 0, 1, ...; each returns its seconds.

    They take turns in their order, so that what else the machine does meets all of them. After
    `patience` seconds no further repetition is begun.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for i in range(repetitions):
        if i and time.perf_counter() - start > patience:
            break
        for name, run in runs.items():
            found[name].append(run(i))
    return {name: Timing(seconds) for name, seconds in found.items()}
