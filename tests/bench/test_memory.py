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
