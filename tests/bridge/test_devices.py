from __future__ import annotations

import ast
import py_compile
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from easyedit_dafnet.bridge import HostInfo, devices

Python = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (0, "cuda:0"),
        ("1", "cuda:1"),
        ("cpu", "cpu"),
        ("mps", "mps"),
        ("cuda", "cuda"),
        ("cuda:1", "cuda:1"),
        (torch.device("cpu"), "cpu"),
        (torch.device("cuda", 2), "cuda:2"),
    ],
)
def test_device_name(device: object, name: str) -> None:
    assert devices.device_name(device) == name


def test_only_the_devices_are_rewritten() -> None:
    source = 'a = f"cuda:{x.device}"\n\nb = f"cuda:{x}, {y}"\nc = f"on cuda:{x}"\nd = "cuda:{x}"\n'
    rewriter = devices.DeviceRewriter()
    tree = rewriter.visit(ast.parse(source))
    assert rewriter.count == 1
    assert ast.unparse(tree).splitlines()[0] == "a = __easyedit_dafnet_device__(x.device)"
    assert ast.unparse(tree).splitlines()[1:] == ast.unparse(ast.parse(source)).splitlines()[1:]


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""Text."""\n\n\nname = (\n    f"cuda:{undefined}"\n)\n')
    loader = devices.DeviceLoader("module", str(path))
    with pytest.raises(NameError) as error:
        exec(loader.get_code("module"), {"__easyedit_dafnet_device__": devices.device_name})
    assert error.traceback[-1].lineno + 1 == 5
    assert error.traceback[-1].path == path


def test_all_places_of_the_release_are_rewritten(host: HostInfo) -> None:
    if host.kind != "release":
        pytest.skip("main takes any device by itself")
    specs = [getattr(module, "__spec__", None) for module in sys.modules.values()]
    loaders = [spec.loader for spec in specs if spec is not None]
    counts = [x.count for x in loaders if isinstance(x, devices.DeviceLoader)]
    assert sum(counts) == devices.PLACES_IN_RELEASE == 52
    assert sum(count > 0 for count in counts) == 17


def test_main_is_not_rewritten(host: HostInfo) -> None:
    if host.kind == "main":
        assert not any(isinstance(finder, devices.DeviceFinder) for finder in sys.meta_path)


def test_byte_code_caches_are_neither_read_nor_written(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('name = f"cuda:{device}"\n')

    def load() -> str:
        names = {"__easyedit_dafnet_device__": devices.device_name, "device": "cpu"}
        exec(devices.DeviceLoader("module", str(path)).get_code("module"), names)
        return str(names["name"])

    assert load() == "cpu"
    assert list(tmp_path.iterdir()) == [path]
    cached = Path(py_compile.compile(str(path), doraise=True) or "")
    before = cached.read_bytes()
    assert load() == "cpu"
    assert cached.read_bytes() == before


def test_release_imported_before_the_bridge_is_warned_of(python: Python, host: HostInfo) -> None:
    if host.kind != "release":
        pytest.skip("main takes any device by itself")
    # The stand-ins alone let it be imported without the devices being rewritten.
    code = (
        "from easyedit_dafnet.bridge import textonly; textonly.install(); import easyeditor\n"
        "import easyedit_dafnet; easyedit_dafnet.register()"
    )
    run = python(code)
    assert run.returncode == 0, run.stderr
    assert "easyeditor was imported before easyedit_dafnet" in run.stderr


def test_other_number_of_places_is_warned_of(
    host: HostInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    if host.kind != "release":
        pytest.skip("main takes any device by itself")
    monkeypatch.setattr(devices, "PLACES_IN_RELEASE", 51)
    with pytest.warns(UserWarning, match="names a CUDA device in 52 places, where .* has 51"):
        devices.check(host)
