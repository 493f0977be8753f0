from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from easyedit_dafnet.bridge import host_info

Python = Callable[..., subprocess.CompletedProcess[str]]
SHOW = "from easyedit_dafnet.bridge import host_info; print(host_info())"


def last_line(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode != 0, run.stdout
    return run.stderr.splitlines()[-1]


def checkout(folder: Path, **files: str) -> Path:
    """A folder that looks like a checkout of EasyEdit's main."""
    for name in ("__init__.py", "util/__init__.py", "util/device.py"):
        path = folder / "easyeditor" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return folder


def test_host_is_found_without_importing_it(python: Python) -> None:
    run = python(SHOW + "; import sys; print({'easyeditor', 'torch'} & sys.modules.keys())")
    assert run.stdout.splitlines() == [str(host_info()), "set()"]


def test_release_says_its_version(python: Python) -> None:
    try:
        version("easyeditor")
    except PackageNotFoundError:
        pytest.skip("the release of EasyEdit is not installed")
    run = python(SHOW, EASYEDIT_HOME=None)
    assert run.stdout.startswith("EasyEdit release (0.0.1.dev0) in ")


def test_easyedit_home_comes_before_the_installed_release(python: Python, tmp_path: Path) -> None:
    home = checkout(tmp_path / "EasyEdit")
    run = python(SHOW, EASYEDIT_HOME=str(home))
    assert run.stdout.strip() == f"EasyEdit main (unknown commit) in {home / 'easyeditor'}"


def test_checkout_says_its_commit(python: Python, tmp_path: Path) -> None:
    home = checkout(tmp_path / "EasyEdit")
    git = ["git", "-C", str(home), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    run = python(SHOW, EASYEDIT_HOME=str(home))
    commit = run.stdout.split("commit ")[1].split(")")[0]
    assert len(commit) >= 7
    assert head.stdout.startswith(commit)


def test_easyedit_home_without_easyedit_is_one_sentence(python: Python, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = last_line(python(SHOW, EASYEDIT_HOME=str(tmp_path / "empty")))
    assert message.startswith(f"ImportError: EASYEDIT_HOME is '{tmp_path / 'empty'}', which is not")
    assert "pip install --no-deps easyeditor==0.0.1.dev0" in message


def test_no_easyedit_at_all_says_how_to_get_it(python: Python, tmp_path: Path) -> None:
    (tmp_path / "easyeditor").mkdir()  # a folder of that name is not EasyEdit
    hide = (
        "import sys; from importlib.machinery import PathFinder as P; find = P.find_spec\n"
        "P.find_spec = lambda name, path=None, target=None: find(name, path, target) "
        "if name != 'easyeditor' else find(name, [''], target)\n"
    )
    message = last_line(python(hide + SHOW, EASYEDIT_HOME=None))
    assert message.startswith("ImportError: EasyEdit was not found: either `pip install")
    assert "EASYEDIT_HOME" in message


def test_other_easyeditor_imported_before_is_one_sentence(python: Python, tmp_path: Path) -> None:
    first, second = checkout(tmp_path / "first"), checkout(tmp_path / "second")
    code = f"import sys; sys.path.insert(0, {str(first)!r}); import easyeditor; " + SHOW
    message = last_line(python(code, EASYEDIT_HOME=str(second)))
    assert message.startswith(f"ImportError: easyeditor was already imported from {first}")
    assert python(code, EASYEDIT_HOME=str(first)).stdout.endswith(f"{first / 'easyeditor'}\n")
    # Without EASYEDIT_HOME, what is imported counts.
    assert python(code, EASYEDIT_HOME=None).stdout.endswith(f"{first / 'easyeditor'}\n")


def test_this_test_run_uses_the_host_that_it_names() -> None:
    home = os.environ.get("EASYEDIT_HOME")
    if not home:
        pytest.skip("EASYEDIT_HOME is not set")
    assert host_info().kind == "main"
    assert host_info().path == Path(home).resolve() / "easyeditor"
