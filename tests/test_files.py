from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from easyedit_dafnet.files import (
    MARK,
    DamagedFile,
    Kind,
    OutputError,
    check_file,
    check_folder,
    mark_folder,
    read_object,
    replacing_folder,
    save_tensors,
    write_text,
)

BOOK = Kind("a book", "book.json", lambda content: content.get("format") == "book/1")
MAP = Kind("a map", "map.json", lambda content: content.get("format") == "map/1")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def book(tmp_path: Path) -> Path:
    with replacing_folder(tmp_path / "book", BOOK) as folder:
        (folder / "book.json").write_text('{"format": "book/1"}')
        (folder / "pages").mkdir()
        (folder / "pages" / "1").write_text("one")
    return tmp_path / "book"


@pytest.fixture
def private() -> Iterator[None]:
    """A umask that keeps others out."""
    former = os.umask(0o077)
    yield
    os.umask(former)


def limited(size: int) -> Callable[[], None]:
    """Lets no file grow beyond so many bytes; returns what ends that."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- what may be written ------------------------------------------------------------------------


def test_a_new_and_an_empty_folder_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "a/b/new"):
        check_folder(tmp_path / name, BOOK)
        check_file(tmp_path / name / "file")
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"], "nothing is left there"


def test_a_folder_of_the_same_kind_may_be_written(book: Path) -> None:
    check_folder(book, BOOK)
    mark_folder(book, BOOK)
    assert not (book / MARK).exists(), "it says already what it is"
    with pytest.raises(OutputError, match="is not a map"):
        check_folder(book, MAP)


@pytest.mark.parametrize(
    "config",
    ['{"model_type": "llama"}', '{"format": "book/2"}', "[]", "{", "", "[" * 100_000, "\xff"],
)
def test_a_file_of_the_same_name_is_not_enough(tmp_path: Path, config: str) -> None:
    (tmp_path / "book.json").write_text(config, encoding="latin-1")
    (tmp_path / "notes.txt").write_text("precious")
    before = content(tmp_path)
    for refused in (check_folder, mark_folder):
        with pytest.raises(OutputError, match=r"not empty \(it holds book.json, notes.txt\)"):
            refused(tmp_path, BOOK)
    with pytest.raises(OutputError), replacing_folder(tmp_path, BOOK):
        raise AssertionError("nothing is begun")
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "is a file; name a folder"),
        ("file/x", "file is a file, so nothing can be written to"),
        ("file/x/y", "file is a file, so nothing can be written to"),
        ("dangling", "dangling is a link to .*, which is not there"),
        ("dangling/x", "dangling is a link to .*, which is not there"),
        ("x" * 300, "cannot be written"),
        ("a/" + "x" * 300, "cannot be written"),
    ],
)
def test_places_where_nothing_can_be_written(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    checks: list[Callable[..., None]] = [check_folder, check_file, lambda p: mark_folder(p, BOOK)]
    for check in checks:
        expected = "file exists" if place == "file" and check is check_file else message
        with pytest.raises(OutputError, match=expected) as error:
            check(tmp_path / place)
        assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_folders_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked" / "inside").mkdir(parents=True)
    (tmp_path / "locked").chmod(0o555)
    try:
        for check in (check_folder, check_file):
            with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"):
                check(tmp_path / "locked" / "new")
        mark_folder(tmp_path / "locked" / "inside", BOOK)  # it is written into, not replaced
    finally:
        (tmp_path / "locked").chmod(0o755)


def test_a_file_system_that_takes_nothing() -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("there is no such file system here")
    with pytest.raises(OutputError, match="/proc/new cannot be written"):
        check_folder("/proc/new")


def test_too_little_room_is_told_before(tmp_path: Path) -> None:
    much = 2 * shutil.disk_usage(tmp_path).free
    for check in (check_folder, check_file):
        check(tmp_path / "new" / "small", size=10**6)
        with pytest.raises(OutputError, match=r"MB are needed|too large"):
            check(tmp_path / "new" / "large", size=much)
    end = limited(1_000_000)
    try:
        with pytest.raises(OutputError, match="too large"):
            check_folder(tmp_path / "new", size=2_000_000)
    finally:
        end()
    assert not list(tmp_path.iterdir())


# ---- folders ------------------------------------------------------------------------------------


def test_a_folder_in_the_making_is_marked(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "atlas"
    mark_folder(folder, MAP)
    (folder / "draft").write_text("half a map")
    mark_folder(folder, MAP)
    with pytest.raises(OutputError, match="is not a book"):
        mark_folder(folder, BOOK)
    mark_folder(folder, BOOK, MAP)
    assert json.loads((folder / MARK).read_text()) == {"kind": "a map"}


def test_what_else_lay_in_a_replaced_folder_is_kept(book: Path) -> None:
    (book / "notes.txt").write_text("precious")
    (book / "more").mkdir()
    (book / "more" / "pages").write_text("of my own")
    (book / "link").symlink_to("nowhere")
    with replacing_folder(book, BOOK) as folder:
        (folder / "book.json").write_text('{"format": "book/1", "edition": 2}')
        (folder / "pages").mkdir()
        (folder / "pages" / "2").write_text("two")
    assert content(book) == {
        "book.json": b'{"format": "book/1", "edition": 2}',
        "pages/2": b"two",  # what the new one has takes the place of the former
        "notes.txt": b"precious",
        "more/pages": b"of my own",
    }
    assert (book / "link").is_symlink()
    assert [p.name for p in book.parent.iterdir()] == ["book"]


def test_a_link_to_a_folder_stays_a_link(book: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(book)
    with replacing_folder(tmp_path / "link", BOOK) as folder:
        (folder / "book.json").write_text('{"format": "book/1", "edition": 3}')
    assert (tmp_path / "link").is_symlink() and b"3" in content(book)["book.json"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_former_folder_and_nothing_else(
    book: Path, error: BaseException
) -> None:
    before = content(book)
    for path in (book, book.parent / "a" / "new"):
        with pytest.raises(type(error)), replacing_folder(path, BOOK) as folder:
            (folder / "book.json").write_text("{")
            raise error
    assert content(book) == before
    assert [p.name for p in book.parent.iterdir()] == ["book"]


def test_a_failed_rename_leaves_the_former_folder(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = content(book), Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing_folder(book, BOOK) as folder:
        (folder / "book.json").write_text("{}")
    assert content(book) == before


# ---- files --------------------------------------------------------------------------------------


def test_a_write_that_is_broken_off_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "report.md"
    write_text(path, "one")

    def broken_off(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", broken_off)
        write_text(path, "two")
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]
    write_text(path, "three ÷ 3")
    assert path.read_text(encoding="utf-8") == "three ÷ 3"
    assert list(path.parent.iterdir()) == [path]


def test_tensors_that_do_not_fit_on_the_disk_leave_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "tensors.safetensors"
    save_tensors({"x": torch.ones(3)}, path, {"edits": "1"})
    before = path.read_bytes()
    end = limited(10_000)
    try:
        for place in (path, tmp_path / "b" / "tensors.safetensors"):
            with pytest.raises(OutputError, match="cannot be written") as error:
                save_tensors({"x": torch.ones(9999)}, place)
            assert str(place) in str(error.value) and "\n" not in str(error.value)
    finally:
        end()
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    assert not (tmp_path / "b").exists()
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"edits": "1"}


def written(folder: Path) -> dict[str, int]:
    """The modes of what each way of writing leaves."""
    save_tensors({"x": torch.ones(3)}, folder / "tensors.safetensors")
    write_text(folder / "report.md", "text")
    with replacing_folder(folder / "book") as fresh:
        (fresh / "by-others").touch(mode=0o600)
    return {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*") if p.is_file()}


def test_files_get_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    mode = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert set(written(tmp_path).values()) == {mode}


def test_a_private_umask_keeps_files_private(private: None, tmp_path: Path) -> None:
    assert set(written(tmp_path).values()) == {0o600}


# ---- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b" \n", "not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
        (b"{", "not JSON"),
        (b"{}}", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", None),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
    ],
)
def test_a_file_that_holds_no_object_is_named(
    tmp_path: Path, text: bytes, message: str | None
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    if message is None:  # a number of so many digits is refused by some versions of Python
        try:
            read_object(path)
        except DamagedFile as refused:
            assert "\n" not in str(refused)
        return
    with pytest.raises(DamagedFile, match=message) as error:
        read_object(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_object_is_read_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    expected: dict[str, Any] = {"name": "Zürich"}
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "config.json").write_text(
            json.dumps(expected, ensure_ascii=False), encoding=encoding
        )
        assert read_object(tmp_path / "config.json") == expected
