"""From a photo to the classifier's input: which specification applies, and what it says.

    photo --load_image--> uint8 (H,W,3) RGB --to_input--> float32 (C,H,W) in [0,1] --normalise--> model space

The last step belongs to the classifier as it was trained; a gradient model has it folded in. A specification is the
content of a Hugging Face `preprocessor_config.json`, or what timm's `config.json` says translated to the same keys.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from onnxplain.engine.space import Space
from onnxplain.errors import InputError, UsageError, unreadable

PREPROCESS_KEY = "onnxplain.preprocess"
GRADIENT_MODEL_KEY = "onnxplain.gradient_model"

MAX_PIXELS = 100_000_000  # below the 178 956 970 where Pillow itself refuses
MAX_SPEC_BYTES = 16 * 2**20  # a timm config.json may carry the names and descriptions of 21 000 classes
RASTER_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # no EPS: it would run Ghostscript

Size: TypeAlias = tuple[int, int]
PerChannel: TypeAlias = tuple[float, ...]
Mode: TypeAlias = Literal["RGB", "L"]  # whose letters are the channels

# Keys that tell which class wrote the file, or options of segmentation: no number of a classifier's input depends on
# them. `do_convert_rgb` is here because photos always become what `image_mode` says.
BOOKKEEPING = frozenset(
    {
        "image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "auto_map",
        "model_input_names", "return_tensors", "data_format", "input_data_format", "disable_grouping", "device",
        "default_to_square", "do_reduce_labels", "do_convert_rgb",
    }
)  # fmt: skip
# Classes of image processors: those that crop unless told not to, those that take a bare number for the shortest edge,
# and those that crop and take it for a square.
CROPPED = ("Bit", "CLIP", "DeiT", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "Perceiver", "PoolFormer")
SHORTEST_EDGE = ("Bit", "CLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer", "Siglip")
SQUARE = ("Beit", "DeiT", "EfficientNet")
PROCESSOR = re.compile(r"(\w+?)(?:ImageProcessor|FeatureExtractor)(?:Fast|Pil)?")
TIMM_FILTERS = {filter.name.lower(): int(filter) for filter in Image.Resampling}


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """How a photo becomes the input of a classifier, in this order: resize, centre crop, rescale, normalise, flip.

    `size`: (height, width), or the length of the shortest edge when the aspect ratio is kept, or None: no resize.
    `resample`: Pillow's number of the filter. `crop_size`: (height, width) cut from the centre, with zeros around an
    image that is too small, or None. `rescale_factor`: multiplies values of 0..255. `image_mean`, `image_std`: in RGB
    order, in units of the rescaled image. `do_flip_channel_order`: the model wants BGR; the flip is the last step, as
    in the image processors that have this key, so that mean and std are in RGB order whether or not it is set.
    `crop_rounding`: where the crop begins when the margin is odd: "floor" as in Hugging Face, "round" (half to
    even) as in torchvision and so in timm. `image_mode`: "RGB", or "L" for one channel of grey, with one mean and std.
    """

    size: Size | int | None
    resample: int = Image.Resampling.BILINEAR
    crop_size: Size | None = None
    rescale_factor: float = 1 / 255
    image_mean: PerChannel = ()  # which stands for zeros
    image_std: PerChannel = ()  # for ones
    do_flip_channel_order: bool = False
    crop_rounding: Literal["floor", "round"] = "floor"
    image_mode: Mode = "RGB"

    def __post_init__(self) -> None:
        for name, default in (("image_mean", 0.0), ("image_std", 1.0)):
            if not getattr(self, name):
                object.__setattr__(self, name, (default,) * self.channels)
            if len(getattr(self, name)) != self.channels:
                raise UsageError(
                    f"{name}={getattr(self, name)}: expected {self.channels} numbers for image_mode={self.image_mode!r}"
                )
        if self.do_flip_channel_order and self.image_mode == "L":
            raise UsageError("do_flip_channel_order with image_mode='L': grey has no channels to flip")
        if not isinstance(self.crop_size or self.size, tuple):
            raise UsageError(
                f"size={self.size!r} with crop_size={self.crop_size!r} gives inputs of no fixed size; "
                "next: set size=(height, width) or a crop_size"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "the preprocessing") -> PreprocessSpec:
        """The content of a `preprocessor_config.json`. `where` names its file in errors.

        A key that is unknown is an error unless it is switched off (false or null): it could change the numbers.

        Raises:
            InputError: a key is missing, unknown, or has a wrong type or value; or the input would have no fixed size.
        """
        keys = _Keys(data, where)
        keys.refuse_unknown(KNOWN | BOOKKEEPING)
        size, crop_size = _resize_and_crop(keys)
        given = data.get("image_mean") is not None or data.get("image_std") is not None
        normalise = keys.processor != "MobileViT" and keys.flag("do_normalize", given)  # whose class has no such step
        mode = keys.mode("image_mode")
        rescale = keys.flag("do_rescale", True)
        mean = keys.per_channel("image_mean", mode) if normalise else ()
        std = keys.per_channel("image_std", mode, low=TINY) if normalise else ()
        if keys.flag("include_top", keys.processor == "EfficientNet"):  # then EfficientNet's divides once more
            again = keys.per_channel("image_std", mode, low=TINY)
            std = tuple(x * y for x, y in zip(std or (1.0,) * len(again), again, strict=True))
        return cls(
            size=size,
            resample=keys.filter("resample") if size is not None else Image.Resampling.BILINEAR,
            crop_size=crop_size,
            rescale_factor=keys.number("rescale_factor", 1 / 255) if rescale else 1.0,
            image_mean=mean,
            image_std=std,
            do_flip_channel_order=keys.flipped("do_flip_channel_order", mode),
            crop_rounding=keys.rounding("crop_rounding"),
            image_mode=mode,
        )

    @classmethod
    def from_timm(cls, data: Mapping[str, Any], *, where: str = "the preprocessing") -> PreprocessSpec:
        """What timm does at evaluation, from the `pretrained_cfg` of its `config.json`.

        The image is resized to `floor(input size / crop_pct)`, shortest edge in crop mode "center", both edges in
        "squash", and cropped at the centre. timm's other crop modes pad, which this specification cannot say.

        Raises:
            InputError: a key is missing or wrong, or says what this specification cannot.
        """
        config = data.get("pretrained_cfg")
        if not isinstance(config, Mapping):
            raise InputError(f"{where}: expected an object under pretrained_cfg, got {_brief(config)}")
        keys = _Keys(config, where)
        shape = config.get("input_size")
        if not (isinstance(shape, (list, tuple)) and len(shape) == 3 and all(map(_is_length, shape))) or (
            shape[0] not in (1, 3)
        ):
            raise keys.wrong("input_size", "[3, height, width], or [1, height, width] for grey")
        channels, height, width = shape
        mode: Mode = "L" if channels == 1 else "RGB"
        ratio = keys.number("crop_pct", high=1)
        crop, filter = config.get("crop_mode", "center"), config.get("interpolation")
        if crop != "squash" and not (crop == "center" and height == width):
            raise keys.wrong("crop_mode", '"center" with a square input_size, or "squash"')
        if not isinstance(filter, str) or filter not in TIMM_FILTERS:
            raise keys.wrong("interpolation", "one of " + ", ".join(TIMM_FILTERS))
        scaled = (math.floor(height / ratio), math.floor(width / ratio))
        return cls(
            size=scaled if crop == "squash" else scaled[0],
            resample=TIMM_FILTERS[filter],
            crop_size=(height, width),
            image_mean=keys.per_channel("mean", mode),
            image_std=keys.per_channel("std", mode, low=TINY),
            crop_rounding="round",
            image_mode=mode,
        )

    @classmethod
    def from_json_file(cls, path: str | Path) -> PreprocessSpec:
        """Read a Hugging Face `preprocessor_config.json`, or a timm `config.json` (known by its `pretrained_cfg`).

        Raises:
            InputError: the file cannot be read, is larger than 16 MiB, is not JSON, or says something wrong.
        """
        data = _read_json(Path(path))
        parse = cls.from_timm if "pretrained_cfg" in data else cls.from_dict
        return parse(data, where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The same specification with Hugging Face's keys, ready for JSON; `from_dict` reads it back."""
        out: dict[str, Any] = {"do_convert_rgb": True, "do_resize": self.size is not None}
        if self.size is not None:
            out["size"] = {"shortest_edge": self.size} if isinstance(self.size, int) else _hw(self.size)
            out["resample"] = int(self.resample)
        out["do_center_crop"] = self.crop_size is not None
        if self.crop_size is not None:
            out["crop_size"] = _hw(self.crop_size)
        out |= {"do_rescale": True, "rescale_factor": self.rescale_factor}
        out |= {"do_normalize": True, "image_mean": list(self.image_mean), "image_std": list(self.image_std)}
        out["do_flip_channel_order"] = self.do_flip_channel_order
        if self.crop_rounding != "floor":
            out["crop_rounding"] = self.crop_rounding
        if self.image_mode != "RGB":
            out["image_mode"] = self.image_mode
        return out

    @property
    def channels(self) -> int:
        """Of the classifier's input: 3, or 1 for grey."""
        return len(self.image_mode)

    @property
    def output_size(self) -> Size:
        """(height, width) of the classifier's input."""
        size = self.crop_size or self.size
        assert isinstance(size, tuple)  # `__post_init__` refuses anything else
        return size

    def space(self, rank: int = 3, channel_axis: int = 0) -> Space:
        """How model space relates to RGB (or grey) in [0,1], per channel in RGB order, for images with `rank` axes.

        Model space is `(x * 255 * rescale_factor - mean) / std`, that is `(x - zero) / scale`, and after that flipped
        to BGR where `do_flip_channel_order` says so.
        """
        white = 255 * self.rescale_factor
        mean, std = ([number / white for number in numbers] for numbers in (self.image_mean, self.image_std))
        return Space.pixels(mean, std, rank=rank, channel_axis=channel_axis)


def load_image(
    path: str | os.PathLike[str], spec: PreprocessSpec, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode, turn upright (EXIF), convert to RGB, resize and crop a photo: uint8 (H,W,3), with Pillow in uint8.

    Conversion is Pillow's `convert("RGB")`, as in Hugging Face: transparency is dropped, not composited; grey is
    repeated; palette and CMYK become RGB. 16-bit grey is scaled to 8 bits and rounded. Of an animation, the first
    frame is read. For a grey classifier it is `convert("L")`, and the three channels of the answer are equal.

    Raises:
        InputError: not a readable image in a raster format, truncated, or with more than `max_pixels` pixels, either
            as its header says (found before decoding) or after resizing.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _decode(path, file, spec, max_pixels)
    except OSError as error:
        raise unreadable("the image", path, error) from error


def to_input(image: NDArray[np.uint8], *, channels: int = 3, channel_axis: int = 0) -> NDArray[np.float32]:
    """uint8 (H,W,3) to the input of a gradient model in pixel space: float32 (C,H,W) in [0,1], (H,W,C) for axis -1.

    `channels` is 3 for RGB, or 1 for grey: then the first channel is taken (`load_image` makes all of them equal).
    """
    pixels = np.moveaxis(image[..., :channels], -1, channel_axis)
    return np.ascontiguousarray(pixels, np.float32) / np.float32(255)


def normalise(x: NDArray[Any], spec: PreprocessSpec, *, channel_axis: int = 0) -> NDArray[Any]:
    """Pixel space, floats (...,C,H,W) or for axis -1 (...,H,W,C), to model space in their dtype.

    That is the input that the classifier was trained on.
    """
    space = spec.space(channel_axis=channel_axis)
    out = ((x - space.zero) / space.scale).astype(x.dtype)
    return np.ascontiguousarray(np.flip(out, channel_axis % 3 - 3)) if spec.do_flip_channel_order else out


def to_pixels(x: NDArray[Any], spec: PreprocessSpec, *, channel_axis: int = 0) -> NDArray[Any]:
    """Model space to pixel space: the inverse of `normalise`."""
    space = spec.space(channel_axis=channel_axis)
    rgb = np.flip(x, channel_axis % 3 - 3) if spec.do_flip_channel_order else x
    return (rgb * space.scale + space.zero).astype(x.dtype)


def find(
    model_path: str | Path | None, *, given: str | Path | None = None, metadata: Mapping[str, str] | None = None
) -> tuple[PreprocessSpec, str]:
    """The specification of a model, and where it was found.

    Looked for in this order: the file `given`; `<model stem>.preprocessor_config.json`; the model's own metadata
    (key `onnxplain.preprocess`); `preprocessor_config.json` and then timm's `config.json` in the model's folder. A
    gradient model has its preprocessing folded in, so that only its own metadata counts.

    Args:
        model_path: where the model lies; None for a model in memory, which has no files beside it.
        given: a file that the user named.
        metadata: the model's `metadata_props`.

    Raises:
        UsageError: nothing was found, or `given` contradicts a gradient model.
        InputError: what was found is wrong.
    """
    metadata = metadata or {}
    model = "the model" if model_path is None else str(model_path)
    own = _own(metadata, model)
    if GRADIENT_MODEL_KEY in metadata:
        if own is None:
            raise UsageError(
                f"{model} is a gradient model that was exported without preprocessing, so photos have no defined way "
                "in; next: export it again with --preprocess FILE, or give arrays from Python"
            )
        if given is not None and PreprocessSpec.from_json_file(given) != own[0]:
            raise UsageError(
                f"{given} differs from the preprocessing that is folded into {model}; next: leave it out, or export "
                "the classifier again with it"
            )
        return own
    if given is not None:
        return PreprocessSpec.from_json_file(given), str(given)
    beside = [] if model_path is None else _beside(Path(model_path))
    if beside and beside[0].is_file():
        return PreprocessSpec.from_json_file(beside[0]), str(beside[0])
    if own is not None:
        return own
    for file in beside[1:]:
        # Hugging Face puts a config.json beside its models too, which says nothing about preprocessing.
        if file.is_file() and (file.name != "config.json" or "pretrained_cfg" in _read_json(file)):
            return PreprocessSpec.from_json_file(file), str(file)
    looked_for = [str(file) for file in beside]
    looked_for.insert(1, f"{PREPROCESS_KEY} in the model's metadata")
    raise UsageError(
        f"no preprocessing found for {model}; looked for {', '.join(looked_for)} (timm, with pretrained_cfg); "
        "next: give it with --preprocess FILE (export takes --preprocess none too, if the input is ready as it is)"
        if beside
        else f"no preprocessing found for {model}: it lies in memory and its metadata has no {PREPROCESS_KEY}; "
        "next: give preprocess=FILE, or preprocess=None if the input is ready as it is"
    )


def _own(metadata: Mapping[str, str], model: str) -> tuple[PreprocessSpec, str] | None:
    text = metadata.get(PREPROCESS_KEY)
    if text is None:
        return None
    where = f"{model} (metadata {PREPROCESS_KEY})"
    return PreprocessSpec.from_dict(_parse_json(text, where), where=where), where


def _beside(model: Path) -> list[Path]:
    names = (f"{model.stem}.preprocessor_config.json", "preprocessor_config.json", "config.json")
    return [model.with_name(name) for name in names]


# Reading a specification


KNOWN = frozenset(
    {
        "do_resize", "size", "resample", "do_center_crop", "crop_size", "crop_pct", "do_rescale", "rescale_factor",
        "do_normalize", "image_mean", "image_std", "do_flip_channel_order", "crop_rounding", "image_mode",
        "include_top",
    }
)  # fmt: skip
MAX_EDGE = 16_384
TINY, HUGE = 1e-9, 1e9  # what float32 can divide by without overflow


@dataclass(frozen=True)
class _Keys:
    """Typed access to a parsed JSON object; whatever is wrong raises an InputError that names file and key."""

    data: Mapping[str, Any]
    where: str

    def wrong(self, key: str, expected: str) -> InputError:
        got = _brief(self.data[key]) if key in self.data else "nothing"
        return InputError(f"{self.where}: {key}: expected {expected}, got {got}; next: correct this key")

    @property
    def processor(self) -> str:
        """Which class wrote the file, without the ending that all of them have; "" where it does not say."""
        name = self.data.get("image_processor_type") or self.data.get("feature_extractor_type")
        match = PROCESSOR.fullmatch(name) if isinstance(name, str) else None
        return match[1] if match else ""

    def flag(self, key: str, default: bool) -> bool:
        """The default where there is no such key; null is false, as to the image processors."""
        value = self.data.get(key, default)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def number(self, key: str, default: float | None = None, *, high: float = HUGE) -> float:
        value = self.data.get(key)
        if value is None and default is not None:
            return default
        if not _is_number(value, TINY, high):
            raise self.wrong(key, f"a number from {TINY:g} to {high:g}")
        return float(value)

    def mode(self, key: str) -> Mode:
        """What the key says; else grey if there is one mean in a list (a bare number is meant for all channels)."""
        mean = self.data.get("image_mean")
        value = self.data.get(key) or ("L" if isinstance(mean, (list, tuple)) and len(mean) == 1 else "RGB")
        if value not in ("RGB", "L"):
            raise self.wrong(key, '"RGB" or "L"')
        return "L" if value == "L" else "RGB"

    def flipped(self, key: str, mode: Mode) -> bool:
        flip = self.flag(key, self.processor == "MobileViT")
        if flip and mode == "L":
            raise self.wrong(key, "false, since the classifier is grey")
        return flip

    def per_channel(self, key: str, mode: Mode, *, low: float = -HUGE) -> PerChannel:
        value = self.data.get(key)
        values = value if isinstance(value, (list, tuple)) else [value] * len(mode)
        if len(values) != len(mode) or not all(_is_number(v, low, HUGE) for v in values):
            count = "one number (grey)" if mode == "L" else "three numbers (RGB)"
            raise self.wrong(key, f"{count} from {low:g} to {HUGE:g}")
        return tuple(map(float, values))

    def filter(self, key: str) -> int:
        value = self.data.get(key)
        if type(value) is not int or value not in list(Image.Resampling):
            names = ", ".join(f"{int(f)} {f.name.lower()}" for f in sorted(Image.Resampling))
            raise self.wrong(key, f"the number of one of Pillow's filters ({names})")
        return value

    def rounding(self, key: str) -> Literal["floor", "round"]:
        value = self.data.get(key, "floor")
        if value not in ("floor", "round"):
            raise self.wrong(key, '"floor" or "round"')
        return "floor" if value == "floor" else "round"

    def size(self, key: str) -> Size | int:
        """{height, width} as a pair, {shortest_edge} as an int."""
        value = self.data.get(key)
        parts = {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else {}
        if all(map(_is_length, parts.values())):
            if parts.keys() == {"height", "width"}:
                return parts["height"], parts["width"]
            if parts.keys() == {"shortest_edge"}:
                return int(parts["shortest_edge"])
        raise self.wrong(key, f'{{"height": .., "width": ..}} or {{"shortest_edge": ..}}, each of 1..{MAX_EDGE}')

    def refuse_unknown(self, known: frozenset[str]) -> None:
        for key, value in self.data.items():
            if key not in known and value is not None and value is not False:
                raise self.wrong(key, "only keys that onnxplain knows, since others may change the input")


def _resize_and_crop(keys: _Keys) -> tuple[Size | int | None, Size | None]:
    """`size` and `crop_size`; at least one of them fixes height and width.

    Old files have a bare number for `size`, which means a square or the shortest edge, as the processor that wrote the
    file pleases. A number and no crop can only be a square. ConvNeXt and ResNet have `crop_pct`: a shortest edge of 224
    then means 224 / crop_pct and a crop of 224, and one of 384 or more means a square. PoolFormer's `crop_pct` enlarges
    what is resized to, beside a crop of its own; LeViT enlarges by 256 / 224 and does not say so.
    """
    data, crop_pct = keys.data, keys.data.get("crop_pct") is not None
    crop = keys.flag("do_center_crop", keys.processor in CROPPED)
    if keys.processor == "Perceiver" and crop:
        raise keys.wrong("image_processor_type", "one that resizes before it crops")
    size = _resized(keys, crop, crop_pct) if keys.flag("do_resize", True) else None
    if crop:
        length = data.get("crop_size")
        crop_size = (length, length) if _is_length(length) else keys.size("crop_size")
        if not isinstance(crop_size, tuple):
            raise keys.wrong("crop_size", '{"height": .., "width": ..}')
        if crop_pct and keys.processor != "PoolFormer":
            raise keys.wrong("crop_pct", "none beside do_center_crop")
        return size, crop_size
    if isinstance(size, int) and crop_pct:
        scaled = int(size / keys.number("crop_pct", high=1))
        return (scaled, (size, size)) if size < 384 else ((size, size), None)
    if not isinstance(size, tuple):
        raise keys.wrong("size", "a fixed height and width, or do_center_crop with a crop_size")
    if crop_pct:
        raise keys.wrong("crop_pct", "none unless size is a shortest edge")
    return size, None


def _resized(keys: _Keys, crop: bool, crop_pct: bool) -> Size | int:
    """What `size` means to the class that wrote it."""
    size: Size | int
    bare = keys.data.get("size")
    if not _is_length(bare):
        size = keys.size("size")
    elif crop_pct or keys.processor in SHORTEST_EDGE:
        size = bare
    elif crop and keys.processor not in SQUARE:
        raise keys.wrong("size", '{"height": .., "width": ..} or {"shortest_edge": ..} beside do_center_crop')
    else:
        size = (bare, bare)
    if keys.processor == "Levit" and isinstance(size, int):
        return int(256 / 224 * size)
    if keys.processor == "PoolFormer" and (crop_pct or "crop_pct" not in keys.data):
        if not crop:
            raise keys.wrong("do_center_crop", "true")
        if isinstance(size, tuple) and size[0] != size[1]:
            raise keys.wrong("size", "a square or a shortest edge")
        return int((size if isinstance(size, int) else size[0]) / keys.number("crop_pct", 0.9, high=1))
    return size


def _is_number(value: Any, low: float, high: float) -> TypeGuard[float]:
    return type(value) in (int, float) and low <= value <= high  # a NaN is not


def _is_length(value: Any) -> TypeGuard[int]:
    return type(value) is int and 1 <= value <= MAX_EDGE


def _brief(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _hw(size: Size) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        raise unreadable("the preprocessing", path, error) from error
    if len(content) > MAX_SPEC_BYTES:
        raise InputError(
            f"cannot read the preprocessing {path}: larger than {MAX_SPEC_BYTES} bytes; next: check the path"
        )
    return _parse_json(content, str(path))


def _parse_json(content: bytes | str, where: str) -> Mapping[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}); next: correct it or give another file") from error
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, got {_brief(data)}; next: give a preprocessor_config.json")
    return data


# Reading a photo


def _decode(path: Path, file: IO[bytes], spec: PreprocessSpec, max_pixels: int) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, or the size, which is checked here
            with Image.open(file, formats=RASTER_FORMATS) as image:
                _bound(path, image.size, max_pixels, "its header states")
                upright = ImageOps.exif_transpose(image)
                return _fit(path, _converted(upright, image.format, spec.image_mode), spec, max_pixels)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(path, "its header states more", max_pixels)) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"cannot read the image {path}: expected a whole file of {', '.join(RASTER_FORMATS)}, got other content "
            "or a stump; next: convert it, or give an image"
        ) from error
    except Exception as error:  # decoders raise anything over a damaged file: OSError, SyntaxError, struct.error, ...
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise InputError(
            f"cannot read the image {path}: damaged or unsupported ({reason}); next: save it again as 8-bit PNG or JPEG"
        ) from error


def _converted(image: Image.Image, format: str | None, mode: Mode) -> Image.Image:
    """8-bit RGB or grey, whatever the mode. Of 32-bit values only those of a PGM file have a known white, 65535."""
    if image.mode.startswith("I;16") or (image.mode == "I" and format == "PPM"):
        grey = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))  # `convert` clips at 255; 65535 = 255 * 257
    elif image.mode in ("I", "F"):
        raise ValueError(f"32-bit grey, mode {image.mode}, does not say which value is white")
    return image.convert(mode)


def _fit(path: Path, image: Image.Image, spec: PreprocessSpec, max_pixels: int) -> NDArray[np.uint8]:
    """Resize and crop."""
    width, height = image.size
    if isinstance(spec.size, int):
        short = min(width, height)
        size = (int(spec.size * width / short), int(spec.size * height / short))
    else:
        size = spec.size[::-1] if spec.size else image.size
    _bound(path, size, max_pixels, "resized, it would have")
    image = image.resize(size, resample=spec.resample)
    if spec.crop_size:
        down, across = spec.crop_size
        left, top = (_margin(excess, spec.crop_rounding) for excess in (size[0] - across, size[1] - down))
        image = image.crop((left, top, left + across, top + down))
    return np.asarray(image.convert("RGB"))


def _margin(excess: int, rounding: str) -> int:
    return excess // 2 if rounding == "floor" else round(excess / 2)


def _bound(path: Path, size: Size, max_pixels: int, states: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InputError(_too_large(path, f"{states} {width} x {height} pixels, more", max_pixels))


def _too_large(path: Path, states: str, max_pixels: int) -> str:
    return f"cannot read the image {path}: {states} than the limit of {max_pixels:,} pixels; next: make it smaller"
