"""A write that fails leaves what was there, and nothing else."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from onnxplain.engine.atomic import writable_file, writable_folder, write_atomically
from onnxplain.errors import OutputError


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_writes_and_overwrites_only_when_asked_to(tmp_path):
    path = tmp_path / "map.npz"
    write_atomically(path, b"first")
    with pytest.raises(OutputError, match=r"map\.npz: already there, left as it is; next: "):
        write_atomically(path, b"second")
    assert content(tmp_path) == {"map.npz": b"first"}
    write_atomically(path, b"third", overwrite=True)
    assert content(tmp_path) == {"map.npz": b"third"}


def test_a_file_may_be_read_by_whom_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        write_atomically(tmp_path / "map.npz", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "map.npz").stat().st_mode) == 0o644


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    write_atomically(tmp_path / ("m" * 251 + ".npz"), b"")
    assert len(content(tmp_path)) == 1


class Full:
    """A file on a full disk: takes a little, then fails."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[:3])
        raise self.error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["write", "replace"])
def test_a_failure_in_the_middle_leaves_nothing_behind(tmp_path, monkeypatch, error, where):
    path = tmp_path / "map.npz"
    path.write_bytes(b"old")

    def fail(*_):
        raise error

    if where == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr("builtins.open", lambda name, mode, _open=open: Full(_open(name, mode), error))
    with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
        write_atomically(path, b"new and longer", overwrite=True)
    monkeypatch.undo()
    assert content(tmp_path) == {"map.npz": b"old"}
    if isinstance(error, OSError):
        assert "map.npz: cannot be written (No space left on device); next: " in str(caught.value)


@pytest.mark.parametrize("name", ["missing/map.npz", "file/map.npz", "folder"])
def test_places_where_nothing_can_be_written(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomically(tmp_path / name, b"", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_folder_without_permission(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OutputError, match=r"map\.npz: cannot be written \(Permission denied\)"):
        write_atomically(tmp_path / "map.npz", b"")


def test_folders_are_made_and_probed_without_a_trace(tmp_path):
    writable_folder(tmp_path / "a" / "b")
    writable_file(tmp_path / "c" / "map.npz")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["a", "a/b", "c"]


def test_places_that_will_take_nothing_are_told_beforehand(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="file: cannot be used for results"):
        writable_folder(tmp_path / "file")
    with pytest.raises(OutputError, match=r"map\.npz: cannot be written: .*file: cannot be used .*; next: "):
        writable_file(tmp_path / "file" / "map.npz")
    with pytest.raises(OutputError, match="it is a folder"):
        writable_file(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        writable_file(tmp_path / "map.npz")
