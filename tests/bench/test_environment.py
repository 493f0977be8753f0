from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from easyedit_dafnet.bench.environment import cpu_name, environment, project_commit
from easyedit_dafnet.bridge import host_info

PROJECT = Path(__file__).resolve().parents[2]


def test_the_environment_names_versions_and_hardware() -> None:
    found = environment("cpu")
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["gpu"] is None
    assert found["cpu"] == cpu_name() != ""
    try:
        assert host_info().version in found["host"]
    except ImportError:
        assert found["host"] is None


@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="not a checkout")
def test_the_commit_is_the_checkouts() -> None:
    git = ["git", "-C", str(PROJECT), "rev-parse", "--short", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    assert (project_commit() or "").rstrip("+") == head
