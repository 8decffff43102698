"""Both attributions of a photo, and their difference, side by side."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from onnxplain.comparison.results import MethodAgreement
from onnxplain.engine.atomic import write_atomically
from onnxplain.engine.explanation import Explanation
from onnxplain.engine.heatmap import diverging, normalised, overlay, reduce_channels, to_bytes
from onnxplain.engine.requests import Array

CAPTION = 18  # pixels above each panel
LEAST = 160  # a smaller image is enlarged to this width or more


def write_picture(
    folder: Path, photo: Path, agreement: MethodAgreement, ours: Explanation, theirs: Array, *, overwrite: bool = False
) -> Path:
    """Write `<stem>.<method>.<side>.png`, atomically. Raises `OutputError`."""
    side = re.sub(r"\W+", "-", agreement.side.lower())
    path = folder / f"{photo.stem}.{agreement.method}.{side}.png"
    png = io.BytesIO()
    Image.fromarray(picture(ours, theirs, agreement.side)).save(png, format="PNG")
    write_atomically(path, png.getvalue(), overwrite=overwrite)
    return path


def pictures_in(folder: Path, photos: Sequence[Path], methods: Collection[str]) -> list[Path]:
    """The pictures of these photos by these methods, with whatever side, that a folder has already."""
    names = {f"{photo.stem}.{method}" for photo in photos for method in methods}
    return sorted(path for path in folder.glob("*.png") if path.name.rsplit(".", 2)[0] in names)


def picture(ours: Explanation, theirs: Array, side: str) -> NDArray[np.uint8]:
    """The photo, our heatmap, theirs and their difference; uint8, RGB. `theirs` is an attribution in the shape of ours.

    The difference is that of the maps in units of their 99th percentiles, blue where ours is lower, red where it is
    higher; full colour is a whole unit.
    """
    image = ours.image
    assert image is not None
    maps = [reduce_channels(one, "sum", ours.channel_axis) for one in (ours.attribution, theirs)]
    panels = {
        "photo": image,
        "onnxplain": overlay(maps[0], image),
        side: overlay(maps[1], image),
        "difference": difference(*maps),
    }
    return np.concatenate([captioned(panel, text) for text, panel in panels.items()], axis=1)


def difference(ours: Array, theirs: Array) -> NDArray[np.uint8]:
    """White where both maps are alike."""
    levels = to_bytes(127.5 + 127.5 * np.clip(normalised(ours) - normalised(theirs), -1, 1))
    return np.ascontiguousarray(cv2.applyColorMap(levels, diverging())[..., ::-1])


def captioned(panel: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """A panel under its name, enlarged by whole pixels if it is small."""
    times = -(-LEAST // panel.shape[1])
    large = Image.fromarray(panel.repeat(times, 0).repeat(times, 1))
    canvas = Image.new("RGB", (large.width + 4, large.height + CAPTION), "white")
    canvas.paste(large, (2, CAPTION))
    ImageDraw.Draw(canvas).text((4, 3), text, fill="black", font=ImageFont.load_default())
    return np.asarray(canvas)
