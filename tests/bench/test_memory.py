from __future__ import annotations

from pathlib import Path

import pytest
import torch

from easyedit_dafnet.bench.memory import PeakMemory

MIB = 2**20


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux starts it afresh"
)
def test_the_peak_is_that_of_the_stretch() -> None:
    base = PeakMemory("cpu").bytes()
    outside = PeakMemory("cpu")
    tensor = torch.ones(64 * MIB, dtype=torch.uint8)
    del tensor
    peak = outside.bytes()
    inside = PeakMemory("cpu")
    later = inside.bytes()
    assert base is not None and peak is not None and later is not None
    assert peak - base == pytest.approx(64 * MIB, rel=0.2)
    assert later - base < 16 * MIB
    assert inside.kind == "resident memory of the process"


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux starts it afresh"
)
def test_what_was_freed_before_does_not_count() -> None:
    """Blocks of a size that the C library keeps when they are freed."""
    base = PeakMemory("cpu").bytes()
    blocks = [torch.ones(16 * 1024, dtype=torch.uint8) for _ in range(16 * 1024)]
    last = blocks[-1]
    del blocks
    later = PeakMemory("cpu").bytes()
    assert base is not None and later is not None and len(last)
    assert later - base < 64 * MIB, "256 MiB were in use"
