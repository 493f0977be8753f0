"""The most memory that a stretch of work took."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def give_back() -> None:
    """What is free in the process goes back to Linux, so that it is not counted again.

    glibc keeps freed blocks of medium size; other C libraries lack malloc_trim.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


class PeakMemory:
    """Measures from its making on.

    On CUDA: bytes of the allocator's tensors (`torch.cuda.max_memory_allocated`). On Linux: the
    process's resident memory with all libraries (VmHWM, which Linux starts afresh when 5 is written
    to clear_refs, see proc(5)). Elsewhere it cannot be started afresh, and there is no number.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.kind: str | None = None
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)
            self.kind = "tensors on the GPU"
        elif _CLEAR.exists():
            give_back()
            try:
                _CLEAR.write_text("5")
                self.kind = "resident memory of the process"
            except OSError:  # some containers forbid it
                pass

    def bytes(self) -> int | None:
        if self.kind is None:
            return None
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device)
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
