"""The built distributions: what is in them, and that the wheel edits without this checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]

EDIT = """
import json, easyedit_dafnet
from easyedit_dafnet.bridge import load_easyeditor

easyedit_dafnet.register()
hparams = easyedit_dafnet.DAFNetHyperParams.from_hparams("DAFNet/smollm2-135m")
editor = load_easyeditor().BaseEditor.from_hparams(hparams)
metrics, _, _ = editor.edit(
    prompts=["The capital of Norway is"], target_new=["London"], subject=["Norway"]
)
result = {when: metrics[0][when]["rewrite_acc"] for when in ("pre", "post")}
print(json.dumps({"package": easyedit_dafnet.__file__, "archive": hparams.archive, **result}))
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel built from it, which shows that the sdist suffices."""
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(PROJECT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def files_below(folder: str) -> set[str]:
    paths = (PROJECT / folder).rglob("*")
    return {str(p.relative_to(PROJECT)) for p in paths if p.is_file() and p.suffix != ".pyc"}


def test_wheel_has_the_settings_and_checkpoints_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"easyedit_dafnet/{name}" for name in files_below("hparams")} <= names
    suites = {name.removeprefix("benchmarks/") for name in files_below("benchmarks/suites")}
    assert {f"easyedit_dafnet/{name}" for name in suites} <= names
    assert files_below("easyedit_dafnet") <= names
    assert {n.split("/")[0].split("-")[0] for n in names} == {"easyedit_dafnet"}


def test_sdist_has_what_make_needs(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    root = {"Makefile", "constraints.txt", "pyproject.toml", "LICENSE", ".ci/run"}
    assert root | files_below("tests") | files_below("benchmarks") <= names


def test_every_requirement_is_pinned(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert "easyeditor" not in {canonicalize_name(r.name) for r in required}
    for requirement in required:
        if requirement.name != "easyedit_dafnet":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_wheel_in_an_empty_environment_edits_from_another_folder(
    wheel: Path, tmp_path: Path
) -> None:
    home = tmp_path / "environment"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True)
    # The dependencies come from the environment of the tests, behind the new one's own packages.
    # A .pth file in there, such as that of an editable installation, is not followed.
    (own,) = home.glob("lib/*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    command = [str(python), "-I", "-c", EDIT]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert Path(result["package"]).is_relative_to(home)
    assert Path(result["archive"]).is_relative_to(home)
    assert result["pre"] == [0.0]
    assert result["post"] == [1.0]

    script = python.with_name("easyedit-dafnet")
    done = subprocess.run([script, "--help"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "import-checkpoint" in done.stdout
