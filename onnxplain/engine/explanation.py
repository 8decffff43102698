"""What an explanation is, in memory and on disk; and heatmaps that other tools wrote."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxplain.engine import heatmap
from onnxplain.engine.arrays import Source, array_names, npz, read_array, reading
from onnxplain.engine.atomic import write_atomically
from onnxplain.errors import InputError, UsageError

Array: TypeAlias = NDArray[Any]

SCHEMA_VERSION = 1
TOP = 5  # classes that are listed in a file's meta


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation:
    """One image explained.

    `attribution` is float32 in the shape and layout of the model's input (without batch axis); `image` is uint8
    (H, W, 3), RGB, as the model saw it.

    Raises:
        UsageError: an array has the wrong dtype or shape, or holds NaN or Inf.
    """

    attribution: Array
    target: int | Array  # the class, or weights (K,)
    logits: Array  # (K,)
    value: float  # of the objective, at the image
    method: str  # its id, as in files and on the command line
    params: Mapping[str, Any] = field(default_factory=dict)
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)  # model SHA-256, preprocess, seed, versions, calls, ...
    image: Array | None = None
    channel_axis: int = 0

    def __post_init__(self) -> None:
        a = self.attribution
        if a.dtype != np.float32 or not a.size or not np.isfinite(a).all():
            raise UsageError(f"attribution: expected finite float32, got {a.dtype.name}{list(a.shape)}")
        if self.logits.ndim != 1 or self.logits.dtype.kind != "f":
            raise UsageError(f"logits: expected floats (K,), got {self.logits.dtype.name}{list(self.logits.shape)}")
        classes = len(self.logits)
        if isinstance(self.target, np.ndarray):
            if self.target.shape != (classes,):
                raise UsageError(f"target: expected {classes} weights, got shape {list(self.target.shape)}")
        elif not 0 <= self.target < classes:
            raise UsageError(f"target {self.target} is out of range: there are {classes} classes")
        if not -a.ndim <= self.channel_axis < a.ndim:
            raise UsageError(f"channel axis {self.channel_axis}: the attribution has {a.ndim} axes only")
        if self.image is not None:
            expected = (*np.delete(a.shape, self.channel_axis), 3)
            if self.image.dtype != np.uint8 or self.image.shape != expected:
                got = f"{self.image.dtype.name}{list(self.image.shape)}"
                raise UsageError(f"image: expected uint8{[int(d) for d in expected]}, got {got}")

    def heatmap(self, reduce: str = "sum") -> Array:
        """The attribution reduced over channels, float32 (H, W): `sum`, `abs_sum` or `max_abs`."""
        return heatmap.reduce_channels(self.attribution, reduce, self.channel_axis)

    def overlay(self, reduce: str = "sum") -> Array:
        """The heatmap painted over the image, uint8 (H, W, 3), RGB; see `heatmap.overlay`."""
        if self.image is None:
            raise UsageError("an overlay needs the image, which this explanation does not have")
        return heatmap.overlay(self.heatmap(reduce), self.image)

    def save_overlay(self, path: Source, *, reduce: str = "sum", overwrite: bool = False) -> None:
        """Write the overlay as PNG, atomically. Raises `OutputError`."""
        from PIL import Image

        png = io.BytesIO()
        Image.fromarray(self.overlay(reduce)).save(png, format="PNG")
        write_atomically(path, png.getvalue(), overwrite=overwrite)

    def save(self, path: Source, *, overwrite: bool = False) -> None:
        """Write a heatmap file (`.npz`), atomically; the same explanation always gives the same bytes.

        Its arrays: `attribution` float32 (C, H, W), `logits` float32 (K,), `image` uint8 (H, W, 3) if there is one,
        and `meta`, a JSON text. NaN and Inf in diagnostics become null.

        Raises:
            OutputError: the file is there already (without `overwrite`), or cannot be written; nothing is left behind.
        """
        arrays = {
            "attribution": np.moveaxis(self.attribution, self.channel_axis, 0),
            "logits": self.logits.astype(np.float32),
            "meta": np.array(json.dumps(self.meta(), allow_nan=False)),
        }
        if self.image is not None:
            arrays["image"] = self.image
        write_atomically(path, npz(arrays), overwrite=overwrite)

    def meta(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON can hold it."""
        best = np.argsort(-self.logits, kind="stable")[:TOP]
        facts = {
            "schema_version": SCHEMA_VERSION,
            "method": self.method,
            "params": self.params,
            "target": self.target,
            "value": self.value,
            "top": [{"class": k, "logit": self.logits[k]} for k in best],
            "diagnostics": self.diagnostics,
            "provenance": self.provenance,
            "channel_axis": self.channel_axis,
        }
        return {name: plain(fact) for name, fact in facts.items()}

    @classmethod
    def load(cls, path: Source) -> Explanation:
        """Read a heatmap file that `save` wrote.

        Raises:
            InputError: the file is missing, damaged, of another kind, or written by a newer version.
        """
        names = array_names(path)
        missing = {"attribution", "logits", "meta"} - set(names)
        if missing:
            raise InputError(
                f"{path}: not a heatmap file of onnxplain, it lacks {', '.join(sorted(missing))}; "
                "next: read it as a plain array, with read_heatmap"
            )
        with reading(path):
            meta = json.loads(read_array(path, "meta").item())
            if meta["schema_version"] != SCHEMA_VERSION:
                raise InputError(
                    f"{path}: heatmap file of schema version {meta['schema_version']}, expected {SCHEMA_VERSION}; "
                    "next: upgrade onnxplain"
                )
            target = meta["target"]
            return cls(
                attribution=np.moveaxis(read_array(path, "attribution"), 0, meta["channel_axis"]),
                target=int(target) if isinstance(target, int) else np.array(target, np.float32),
                logits=read_array(path, "logits"),
                value=float(meta["value"]),
                method=str(meta["method"]),
                params=dict(meta["params"]),
                diagnostics=dict(meta["diagnostics"]),
                provenance=dict(meta["provenance"]),
                image=read_array(path, "image") if "image" in names else None,
                channel_axis=meta["channel_axis"],
            )


def plain(fact: Any) -> Any:
    """A fact as JSON can hold it: NumPy and enums become plain Python, NaN and Inf become null."""
    match fact:
        case Enum():
            return plain(fact.value)
        case np.ndarray():
            return plain(fact.tolist())
        case np.generic():
            return plain(fact.item())
        case float() if not math.isfinite(fact):
            return None
        case Mapping():
            return {str(key): plain(item) for key, item in fact.items()}
        case list() | tuple():
            return [plain(item) for item in fact]
    return fact


@dataclass(frozen=True, eq=False)
class LoadedHeatmap:
    """A map from a file, float32 (H, W) or (C, H, W), and the explanation if the file is one of ours."""

    values: Array
    explanation: Explanation | None = None


def read_heatmap(path: Source, key: str | None = None) -> LoadedHeatmap:
    """Read a heatmap: our own file, or a `.npy`/`.npz` array (H, W), (C, H, W) or (1, C, H, W) of any other tool.

    Float and int arrays become float32. `key` names the array to take from an archive of several. Nothing is ever
    unpickled, and an array of more than 512 MiB is refused before it is read.

    Raises:
        InputError: whatever is wrong with the file, the key, the array's dtype or shape; NaN or Inf in it.
    """
    names = array_names(path)
    if key is None and {"attribution", "meta"} <= set(names):
        explanation = Explanation.load(path)
        values = np.moveaxis(explanation.attribution, explanation.channel_axis, 0)
        return LoadedHeatmap(as_map(values, path), explanation)
    if key is None and len(names) != 1:
        raise InputError(
            f"{path}: holds {len(names)} arrays, expected one ({', '.join(names)}); "
            "next: name the one to take (key, --key)"
        )
    return LoadedHeatmap(as_map(read_array(path, names[0] if key is None else key), path))


def as_map(values: Array, path: Source) -> Array:
    """`values` as float32 (H, W) or (C, H, W), if that is what they are."""
    shape = values.shape
    if len(shape) == 4 and shape[0] == 1:
        values = values[0]
    if values.dtype.kind not in "fiu" or values.ndim not in (2, 3) or not values.size:
        raise InputError(
            f"{path}: expected numbers of shape (H, W), (C, H, W) or (1, C, H, W), "
            f"got {values.dtype} {list(shape)}; next: convert the array and save it again"
        )
    with np.errstate(over="ignore"):  # what does not fit float32 becomes Inf, and is refused as such
        values = values.astype(np.float32)
    heatmap.require_finite(values, str(path))
    return values
