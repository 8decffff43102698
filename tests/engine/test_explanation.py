"""Explanations, their files, and heatmaps of other tools. Only `InputError` may come out of a bad file."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from enum import Enum

import numpy as np
import pytest
from PIL import Image

from onnxplain.engine import arrays
from onnxplain.engine.explanation import Explanation, read_heatmap
from onnxplain.errors import InputError, OutputError, UsageError

RNG = np.random.default_rng(5)


class Rule(Enum):
    PATH = "path"


def explanation(**changes):
    facts = {
        "attribution": RNG.normal(size=(3, 6, 8)).astype(np.float32),
        "target": 2,
        "logits": np.array([0.5, 3, -1, 3, 0, 2, 1], np.float32),
        "value": -1.0,
        "method": "isa",
        "params": {"step": 0.002, "rounds": np.int64(8), "validity": Rule.PATH},
        "diagnostics": {"gap": np.float32(0.25), "losses": np.array([1.0, np.nan]), "stopped": True},
        "provenance": {"model_sha256": "ab", "seed": 0, "versions": {"numpy": "2"}, "shape": (3, 6, 8)},
        "image": RNG.integers(0, 256, (6, 8, 3), np.uint8),
    }
    return Explanation(**(facts | changes))


class TestExplanation:
    def test_heatmap(self):
        e = explanation()
        np.testing.assert_array_equal(e.heatmap(), e.attribution.sum(0))
        np.testing.assert_array_equal(e.heatmap("max_abs"), np.abs(e.attribution).max(0))

    def test_overlay_and_its_picture(self, tmp_path):
        e = explanation()
        path = tmp_path / "cat.isa.png"
        e.save_overlay(path, reduce="abs_sum")
        np.testing.assert_array_equal(np.asarray(Image.open(path)), e.overlay("abs_sum"))
        with pytest.raises(OutputError, match="already there"):
            e.save_overlay(path)
        with pytest.raises(UsageError, match="needs the image"):
            explanation(image=None).overlay()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"attribution": np.zeros((3, 6, 8))}, r"attribution: expected finite float32, got float64\[3, 6, 8\]"),
            ({"attribution": np.full((3, 6, 8), np.nan, np.float32)}, "expected finite"),
            ({"attribution": np.zeros((3, 0, 8), np.float32)}, "expected finite float32"),
            ({"logits": np.zeros((1, 7), np.float32)}, r"logits: expected floats \(K,\)"),
            ({"target": 7}, "target 7 is out of range: there are 7 classes"),
            ({"target": np.zeros(3)}, "expected 7 weights"),
            ({"image": np.zeros((8, 6, 3), np.uint8)}, r"image: expected uint8\[6, 8, 3\]"),
            ({"image": np.zeros((6, 8, 3))}, r"got float64\[6, 8, 3\]"),
            ({"channel_axis": 3}, "channel axis 3"),
        ],
    )
    def test_what_cannot_be(self, changes, message):
        with pytest.raises(UsageError, match=message):
            explanation(**changes)


class TestFiles:
    def test_everything_comes_back(self, tmp_path):
        e = explanation()
        e.save(tmp_path / "cat.isa.npz")
        back = Explanation.load(tmp_path / "cat.isa.npz")
        for name in ("attribution", "logits", "image"):
            np.testing.assert_array_equal(getattr(back, name), getattr(e, name))
            assert getattr(back, name).dtype == getattr(e, name).dtype
        assert (back.target, back.value, back.method) == (2, -1.0, "isa")
        assert back.params == {"step": 0.002, "rounds": 8, "validity": "path"}
        assert back.diagnostics == {"gap": 0.25, "losses": [1.0, None], "stopped": True}
        assert back.provenance == {"model_sha256": "ab", "seed": 0, "versions": {"numpy": "2"}, "shape": [3, 6, 8]}

    def test_numpy_alone_can_read_the_file(self, tmp_path):
        e = explanation()
        e.save(tmp_path / "cat.npz")
        with np.load(tmp_path / "cat.npz", allow_pickle=False) as file:
            assert sorted(file) == ["attribution", "image", "logits", "meta"]
            np.testing.assert_array_equal(file["attribution"], e.attribution)
            meta = json.loads(str(file["meta"]))
        assert meta["schema_version"] == 1
        assert [item["class"] for item in meta["top"]] == [1, 3, 5, 6, 0]
        assert meta["top"][0]["logit"] == 3

    def test_channels_are_first_in_the_file_whatever_the_model_has(self, tmp_path):
        e = explanation(attribution=RNG.normal(size=(6, 8, 3)).astype(np.float32), channel_axis=-1)
        e.save(tmp_path / "cat.npz")
        with np.load(tmp_path / "cat.npz") as file:
            np.testing.assert_array_equal(file["attribution"], np.moveaxis(e.attribution, -1, 0))
        np.testing.assert_array_equal(Explanation.load(tmp_path / "cat.npz").attribution, e.attribution)
        np.testing.assert_array_equal(read_heatmap(tmp_path / "cat.npz").values, np.moveaxis(e.attribution, -1, 0))

    def test_weights_as_target_and_no_image(self, tmp_path):
        weights = RNG.normal(size=7).astype(np.float32)
        explanation(target=weights, image=None).save(tmp_path / "cat.npz")
        back = Explanation.load(tmp_path / "cat.npz")
        np.testing.assert_array_equal(back.target, weights)
        assert back.image is None

    def test_the_same_content_gives_the_same_bytes(self, tmp_path):
        e = explanation()
        e.save(tmp_path / "a.npz")
        e.save(tmp_path / "b.npz")
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()

    def test_an_existing_file_stays(self, tmp_path):
        (tmp_path / "a.npz").write_bytes(b"mine")
        with pytest.raises(OutputError, match="already there"):
            explanation().save(tmp_path / "a.npz")
        assert (tmp_path / "a.npz").read_bytes() == b"mine"
        explanation().save(tmp_path / "a.npz", overwrite=True)
        assert Explanation.load(tmp_path / "a.npz").method == "isa"
        assert os.listdir(tmp_path) == ["a.npz"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"attribution": np.zeros((3, 6, 8))}, "damaged .*expected finite float32, got float64"),
            ({"image": np.zeros((6, 9, 3), np.uint8)}, r"damaged .*image: expected uint8\[6, 8, 3\]"),
            ({"meta": np.array("{}")}, "damaged .*schema_version"),
            ({"meta": np.array("not json")}, "damaged .*JSONDecodeError"),
            ({"meta": np.array('{"schema_version": 2}')}, "schema version 2, expected 1; next: upgrade"),
            ({"meta": np.zeros(3)}, "damaged"),
        ],
    )
    def test_files_that_are_almost_ours(self, tmp_path, changes, message):
        path = tmp_path / "cat.npz"
        explanation().save(path)
        with np.load(path) as file:
            content = dict(file) | changes
        np.savez(path, **content)
        with pytest.raises(InputError, match=rf"cat\.npz: .*{message}"):
            read_heatmap(path)

    def test_a_file_that_is_not_ours(self, tmp_path):
        np.savez(tmp_path / "other.npz", attribution=np.zeros((3, 2, 2)))
        with pytest.raises(InputError, match="lacks logits, meta; next: "):
            Explanation.load(tmp_path / "other.npz")
        assert read_heatmap(tmp_path / "other.npz").explanation is None


def save_npy(path, array):
    np.save(path, array, allow_pickle=True)
    return path


class TestOtherTools:
    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "u1", "i8"])
    @pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (1, 3, 4, 5)])
    def test_shapes_and_dtypes(self, tmp_path, dtype, shape):
        values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        for array in (values, np.asfortranarray(values)):
            loaded = read_heatmap(save_npy(tmp_path / "map.npy", array))
            assert loaded.values.dtype == np.float32
            assert loaded.explanation is None
            np.testing.assert_array_equal(loaded.values, values.reshape(shape[-3:]))

    def test_archives(self, tmp_path):
        maps = {"a": np.eye(4), "b": np.ones((3, 4, 4))}
        np.savez_compressed(tmp_path / "two.npz", **maps)
        np.savez(tmp_path / "one.npz", a=maps["a"])
        np.testing.assert_array_equal(read_heatmap(tmp_path / "one.npz").values, maps["a"])
        for key, values in maps.items():
            np.testing.assert_array_equal(read_heatmap(tmp_path / "two.npz", key).values, values)
        with pytest.raises(InputError, match=r"two\.npz: holds 2 arrays, expected one \(a, b\); next: .*--key"):
            read_heatmap(tmp_path / "two.npz")
        with pytest.raises(InputError, match=r"two\.npz: has no array 'c'; next: name one of these: a, b"):
            read_heatmap(tmp_path / "two.npz", "c")

    def test_a_key_reads_our_own_files_too(self, tmp_path):
        e = explanation()
        e.save(tmp_path / "cat.npz")
        loaded = read_heatmap(tmp_path / "cat.npz", "attribution")
        np.testing.assert_array_equal(loaded.values, e.attribution)
        assert read_heatmap(tmp_path / "cat.npz").explanation.method == "isa"

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros(5), r"expected numbers of shape \(H, W\)"),
            (np.zeros((2, 3, 4, 5)), r"got float64 \[2, 3, 4, 5\]"),
            (np.zeros((0, 5)), r"got float64 \[0, 5\]"),
            (np.zeros((4, 5), bool), "holds bool, expected float or int"),
            (np.zeros((4, 5), complex), "holds complex128"),
            (np.array([["a", "b"]]), "expected numbers of shape"),
            (np.array([[None]]), "holds pickled Python objects, which are never loaded"),
            (np.full((4, 5), np.nan), "20 of 20 values are NaN or Inf"),
            (np.full((4, 5), 1e300), "20 of 20 values are NaN or Inf"),
        ],
    )
    def test_arrays_that_are_no_maps(self, tmp_path, array, message):
        with pytest.raises(InputError, match=rf"map\.npy: .*{message}.*next: ") as caught:
            read_heatmap(save_npy(tmp_path / "map.npy", array))
        assert "\n" not in str(caught.value)


class Trap:
    """Unpickling it tells."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


class TestBadFiles:
    def refuse(self, path, message="next", key=None):
        with pytest.raises(InputError, match=message) as caught:
            read_heatmap(path, key)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert "next: " in str(caught.value)

    def test_a_pickle_is_not_loaded_wherever_it_hides(self, tmp_path):
        payload = pickle.dumps(Trap())
        (tmp_path / "a.npy").write_bytes(payload)
        self.refuse(tmp_path / "a.npy", "neither a .npy nor a .npz file")
        np.savez(tmp_path / "b.npz", heatmap=np.array([[Trap()]], dtype=object))
        self.refuse(tmp_path / "b.npz", "holds pickled Python objects, which are never loaded")
        np.savez(tmp_path / "c.npz", attribution=np.zeros((3, 2, 2)), logits=np.zeros(2), meta=np.array(Trap()))
        self.refuse(tmp_path / "c.npz", "holds pickled Python objects")
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.writestr("heatmap.npy", payload)
        self.refuse(tmp_path / "d.npz", "damaged")
        assert not Trap.sprung

    def test_missing_empty_text_folder(self, tmp_path):
        self.refuse(tmp_path / "none.npy", "No such file")
        self.refuse(tmp_path, "directory")
        for name, data in {"empty.npy": b"", "text.npz": b"not a picture\n" * 99, "short.npy": b"\x93NUM"}.items():
            (tmp_path / name).write_bytes(data)
            self.refuse(tmp_path / name, "neither")

    def test_an_archive_without_arrays(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("readme.txt", "nothing")
        self.refuse(tmp_path / "a.npz", "holds no arrays")
        self.refuse(tmp_path / "a.npz", "holds no arrays", key="x")

    def test_a_zip_bomb_is_refused_before_it_is_unpacked(self, tmp_path, monkeypatch):
        monkeypatch.setattr(arrays, "LIMIT", 2**22)
        np.savez_compressed(tmp_path / "bomb.npz", heatmap=np.zeros((1, 1500, 1500)), small=np.eye(4))
        assert (tmp_path / "bomb.npz").stat().st_size < 2**15
        monkeypatch.setattr(arrays, "read_npy", lambda *_: pytest.fail("unpacked"))
        self.refuse(tmp_path / "bomb.npz", "would take 17 MiB, more than 4", key="heatmap")
        monkeypatch.undo()
        assert read_heatmap(tmp_path / "bomb.npz", "small").values.shape == (4, 4)

    @pytest.mark.parametrize("archived", [False, True])
    def test_a_huge_header_is_refused_before_anything_is_allocated(self, tmp_path, archived, monkeypatch):
        header = io.BytesIO()
        shape = (10**9, 10**9, 10**9)
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
        path = tmp_path / "map.npy"
        if archived:
            path = tmp_path / "map.npz"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("heatmap.npy", header.getvalue())
        else:
            path.write_bytes(header.getvalue())
        self.refuse(path, "cut short")

    def test_an_array_above_the_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr(arrays, "LIMIT", 0)
        self.refuse(save_npy(tmp_path / "map.npy", np.zeros((600, 600))), "would take 3 MiB, more than 0")

    def test_headers_that_lie(self, tmp_path):
        for text in (b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}", b"[" * 900, b"__import__('os')"):
            header = text.ljust(1000) + b"\n"
            (tmp_path / "map.npy").write_bytes(
                b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
            )
            self.refuse(tmp_path / "map.npy")

    def test_a_version_that_does_not_exist(self, tmp_path):
        (tmp_path / "map.npy").write_bytes(b"\x93NUMPY\x09\x00" + bytes(64))
        self.refuse(tmp_path / "map.npy")

    def test_compression_that_numpy_never_writes(self, tmp_path):
        data = io.BytesIO()
        np.save(data, np.eye(4))
        with zipfile.ZipFile(tmp_path / "map.npz", "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("heatmap.npy", data.getvalue())
        self.refuse(tmp_path / "map.npz", "compressed in an unknown way")

    def test_damaged_files_give_a_map_or_an_input_error_and_nothing_else(self, tmp_path):
        """Seeded bytes flipped and tails cut off, in each kind of file."""
        rng = np.random.default_rng(0)
        explanation().save(tmp_path / "own")
        np.savez_compressed(tmp_path / "packed.npz", heatmap=rng.normal(size=(3, 6, 8)))
        np.savez(tmp_path / "plain.npz", heatmap=np.eye(4))
        np.save(tmp_path / "map.npy", np.eye(4))
        refused = 0
        for source in sorted(tmp_path.iterdir()):
            good, path = source.read_bytes(), tmp_path / "damaged"
            for trial in range(300):
                data = bytearray(good)
                if trial % 3 == 0:
                    del data[rng.integers(len(data)) :]
                else:
                    start = rng.integers(len(data)) if trial % 3 == 1 else rng.integers(min(128, len(data)))
                    for at in range(start, min(start + rng.integers(1, 5), len(data))):
                        data[at] = rng.integers(256)
                path.write_bytes(data)
                try:
                    loaded = read_heatmap(path)
                except InputError:
                    refused += 1
                else:
                    assert np.isfinite(loaded.values).all()
        assert refused > 400  # every cut, and most of the flips
