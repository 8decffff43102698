"""Result rows on disk: what a crash leaves, what a full disk leaves, and that Parquet holds what the lines hold."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from frameworks import framework

from onnxplain.engine.rows import RowLog, write_parquet
from onnxplain.errors import BackendMissing, InputError, OutputError


def unit(key, size=3, **more):
    return [{"key": key, "part": [i, size], "value": i / 7, **more} for i in range(size)]


def filled(path, *keys):
    with RowLog(path) as log:
        for key in keys:
            log.append(unit(key))
    return path.read_bytes()


def test_rows_come_back_in_order(tmp_path):
    filled(tmp_path / "rows.jsonl", "a", "b")
    with RowLog(tmp_path / "rows.jsonl") as log:
        assert log.keys == {"a", "b"}
        assert list(log) == unit("a") + unit("b")
        log.append(unit("c", 1))
        assert log.keys == {"a", "b", "c"}
        assert list(log) == unit("a") + unit("b") + unit("c", 1)


def test_every_place_where_a_crash_can_cut_the_file_off(tmp_path):
    """What is left of a line is dropped, a unit without all its rows is not there, and a rerun makes up for both."""
    path = tmp_path / "rows.jsonl"
    whole = filled(path, "a", "b")
    first = len("".join(json.dumps(row) + "\n" for row in unit("a")).encode())
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with RowLog(path) as log:
            assert log.keys == ({"a"} if cut >= first else set())
            assert path.read_bytes() == whole[: whole[:cut].rfind(b"\n") + 1]
            log.append(unit("b"))
        with RowLog(path) as log:
            assert "b" in log.keys


def test_a_last_line_longer_than_what_is_read_at_once_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole = filled(path, "a")
    path.write_bytes(whole + b"x" * 200_000)
    with RowLog(path) as log:
        assert log.keys == {"a"}
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", "{}", '{"key": 1, "part": [0, 1]}', '{"key": "a", "part": [1, 1]}', "\0"]
)
def test_a_line_that_is_no_row_is_an_error(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    filled(path, "a")
    path.write_bytes(path.read_bytes() + line.encode() + b"\n")
    before = path.read_bytes()
    with pytest.raises(InputError, match="line 4 is no result row"):
        RowLog(path)
    assert path.read_bytes() == before


def test_a_folder_where_the_file_should_be(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        RowLog(tmp_path / "rows.jsonl")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_is_told_and_loses_nothing_that_was_there(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole = filled(path, "a")
    script = f"""
import resource
from pathlib import Path
from onnxplain.engine.rows import RowLog
from onnxplain.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(whole) + 20}, {len(whole) + 20}))
try:
    with RowLog(Path({str(path)!r})) as log:
        log.append([{{"key": "b", "part": [0, 1], "value": 1}}])
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert "run the same command again" in done.stdout
    assert path.read_bytes()[: len(whole)] == whole
    with RowLog(path) as log:
        assert log.keys == {"a"}
    assert path.read_bytes() == whole


def test_parquet_holds_the_rows(tmp_path):
    parquet = framework("pyarrow.parquet")
    rows = [
        {"image": "a.png", "value": 0.5, "target": 3, "curve": [0.25, 0.5], "params": {"k": 1, "b": None}},
        {"image": "ä.png", "value": None, "target": 4, "params": {}, "more": True},
    ]
    path = tmp_path / "results.parquet"
    path.write_bytes(b"an older one")
    write_parquet(path, rows)
    table = parquet.read_table(path)
    assert table.column_names == ["image", "value", "target", "curve", "params", "more"]
    assert table.to_pylist() == [
        {
            "image": "a.png",
            "value": 0.5,
            "target": 3,
            "curve": [0.25, 0.5],
            "params": '{"b": null, "k": 1}',
            "more": None,
        },
        {"image": "ä.png", "value": None, "target": 4, "curve": None, "params": "{}", "more": True},
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["results.parquet"]


def test_parquet_that_cannot_be_written(tmp_path):
    framework("pyarrow.parquet")
    (tmp_path / "results.parquet").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_parquet(tmp_path / "results.parquet", [{"a": 1}])
    assert [file.name for file in tmp_path.iterdir()] == ["results.parquet"]


@pytest.mark.parametrize("package", ["pyarrow", "scipy"])
def test_a_missing_package_is_told(tmp_path, monkeypatch, package):
    framework("pyarrow.parquet")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendMissing, match=rf'{package} is not installed; next: pip install "onnxplain\[results\]"'):
        write_parquet(tmp_path / "results.parquet", [{"a": 1}])
