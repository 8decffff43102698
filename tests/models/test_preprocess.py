from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxplain.errors import InputError, UsageError
from onnxplain.models.preprocess import PreprocessSpec, find, load_image, normalise, to_input

DATA = Path(__file__).parents[2].parent / "shared" / "data"

# google/vit-base-patch16-224, as its page on the hub shows it
VIT: dict[str, Any] = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor", "image_std": [0.5, 0.5, 0.5], "resample": 2,
    "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224},
}  # fmt: skip
# microsoft/resnet-50
RESNET: dict[str, Any] = {
    "crop_pct": 0.875, "do_normalize": True, "do_resize": True, "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 224,
}  # fmt: skip
# apple/mobilevit-small
MOBILEVIT: dict[str, Any] = {
    "crop_size": 256, "do_center_crop": True, "do_flip_channel_order": True, "do_resize": True,
    "feature_extractor_type": "MobileViTFeatureExtractor", "resample": 2, "size": {"shortest_edge": 288},
}  # fmt: skip
# timm/resnet50.a1_in1k, shortened
TIMM: dict[str, Any] = {
    "architecture": "resnet50",
    "num_classes": 1000,
    "pretrained_cfg": {
        "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 1000,
    },
}  # fmt: skip
PLAIN = PreprocessSpec(size=None, crop_size=(2, 2))


def as_is(height: int, width: int) -> PreprocessSpec:
    return PreprocessSpec(size=(height, width), resample=0)


@pytest.fixture
def photo(tmp_path: Path) -> Any:
    """Save an image or raw bytes under a name, and return the path."""

    def save(content: Image.Image | bytes, name: str = "photo.png", **options: Any) -> Path:
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path, **options)
        return path

    return save


def noise(height: int, width: int, channels: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


# The specification


def test_reads_files_as_the_hub_has_them() -> None:
    vit, resnet, mobilevit = map(PreprocessSpec.from_dict, (VIT, RESNET, MOBILEVIT))
    assert (vit.size, vit.crop_size, vit.resample, vit.image_mean) == ((224, 224), None, 2, (0.5, 0.5, 0.5))
    assert (resnet.size, resnet.crop_size, resnet.rescale_factor) == (256, (224, 224), 1 / 255)
    assert (mobilevit.size, mobilevit.crop_size, mobilevit.do_flip_channel_order) == (288, (256, 256), True)
    assert (mobilevit.image_mean, mobilevit.image_std) == ((0, 0, 0), (1, 1, 1))
    assert [spec.output_size for spec in (vit, resnet, mobilevit)] == [(224, 224), (224, 224), (256, 256)]


@pytest.mark.parametrize(
    ("change", "size", "crop"),
    [
        ({}, 235, (224, 224)),  # floor(224 / 0.95) = 235
        ({"crop_pct": 0.875}, 256, (224, 224)),
        ({"crop_mode": "squash", "crop_pct": 0.9, "input_size": [3, 192, 256]}, (213, 284), (192, 256)),
        ({"crop_pct": 1.0, "input_size": [3, 384, 384]}, 384, (384, 384)),
    ],
)
def test_timm(change: dict[str, Any], size: object, crop: object, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | change}))
    spec = PreprocessSpec.from_json_file(path)
    assert (spec.size, spec.crop_size, spec.resample, spec.crop_rounding) == (size, crop, 3, "round")


@pytest.mark.parametrize("data", [VIT, RESNET, MOBILEVIT, VIT | {"do_rescale": False, "do_normalize": False}])
def test_to_dict_is_read_back_the_same(data: dict[str, Any]) -> None:
    spec = PreprocessSpec.from_dict(data)
    assert PreprocessSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    timm = PreprocessSpec.from_timm(TIMM)
    assert PreprocessSpec.from_dict(timm.to_dict()) == timm


@pytest.mark.parametrize(
    ("change", "key", "got"),
    [
        ({"image_mean": [0.5, 0.5]}, "image_mean", "[0.5, 0.5]"),
        ({"image_std": [1, 0, 1]}, "image_std", "[1, 0, 1]"),
        ({"image_std": None}, "image_std", "null"),
        ({"image_mean": [1, float("nan"), 1]}, "image_mean", "NaN"),
        ({"rescale_factor": 10**400}, "rescale_factor", "1000"),
        ({"resample": 9}, "resample", "9"),
        ({"resample": None}, "resample", "null"),
        ({"do_resize": "yes"}, "do_resize", '"yes"'),
        ({"size": {"height": 224}}, "size", '{"height": 224}'),
        ({"size": {"height": 224, "width": True}}, "size", "true"),
        ({"size": {"longest_edge": 224}}, "size", "longest_edge"),
        ({"size": {"shortest_edge": 224}}, "size", "shortest_edge"),
        ({"size": 224, "do_center_crop": True, "crop_size": 200}, "size", "224"),
        ({"do_center_crop": True}, "crop_size", "nothing"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "crop_size", "shortest_edge"),
        ({"do_resize": False}, "size", "height"),
        ({"size": 10**9}, "size", "1000000000"),
        ({"crop_pct": 0.9}, "crop_pct", "0.9"),
        ({"crop_pct": 0, "size": 224}, "crop_pct", "0"),
        ({"crop_pct": 0.9, "size": {"shortest_edge": 2}, "do_center_crop": True, "crop_size": 2}, "crop_pct", "0.9"),
        ({"do_pad": True}, "do_pad", "true"),
        ({"rescale_offset": True}, "rescale_offset", "true"),
        ({"crop_rounding": "up"}, "crop_rounding", '"up"'),
    ],
)
def test_a_wrong_key_is_named(change: dict[str, Any], key: str, got: str) -> None:
    with pytest.raises(InputError) as caught:
        PreprocessSpec.from_dict(VIT | change, where="pp.json")
    message = str(caught.value)
    assert message.startswith(f"pp.json: {key}: expected ")
    assert got in message.split(", got ")[-1]
    assert "\n" not in message


def test_inputs_have_a_fixed_size() -> None:
    for size in (None, 224):
        with pytest.raises(UsageError, match="no fixed size"):
            PreprocessSpec(size=size)


def test_keys_that_are_off_change_nothing() -> None:
    assert PreprocessSpec.from_dict(VIT | {"do_pad": False, "pad_size": None}) == PreprocessSpec.from_dict(VIT)


@pytest.mark.parametrize(
    "change",
    [{"crop_mode": "border"}, {"input_size": [3, 200, 224]}, {"input_size": [1, 28, 28]}, {"crop_pct": 1.2},
     {"interpolation": "random"}, {"interpolation": ["bicubic"]}, {"mean": None}, {"std": [0, 1, 1]}],
)  # fmt: skip
def test_timm_says_what_it_cannot_do(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"expected .*, got .*; next: "):
        PreprocessSpec.from_timm({"pretrained_cfg": TIMM["pretrained_cfg"] | change})


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe\xfa", b"[" * 100_000, b"1" * 5000, b" " * (2**24 + 1)]
)
def test_damaged_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pp.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"pp\.json.*; next: "):
        PreprocessSpec.from_json_file(path)
    with pytest.raises(InputError, match=r"absent\.json: No such file"):
        PreprocessSpec.from_json_file(tmp_path / "absent.json")


def test_space_says_where_model_space_lies() -> None:
    space = PreprocessSpec.from_dict(RESNET).space()
    assert space.zero.shape == (3, 1, 1)
    np.testing.assert_allclose(space.zero.ravel(), RESNET["image_mean"], rtol=1e-6)
    np.testing.assert_allclose(space.scale.ravel(), RESNET["image_std"], rtol=1e-6)
    raw = PreprocessSpec.from_dict(VIT | {"do_rescale": False, "do_normalize": False}).space(rank=4)
    assert raw.zero.shape == (3, 1, 1, 1)
    np.testing.assert_allclose(raw.scale, 1 / 255, rtol=1e-6)  # the classifier takes 0..255


def test_normalise_by_hand() -> None:
    image = noise(4, 5)
    x = to_input(image)
    assert x.shape == (3, 4, 5)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    np.testing.assert_allclose(
        normalise(x, PreprocessSpec.from_dict(VIT)), image.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6
    )
    flipped = normalise(x[None], PreprocessSpec.from_dict(MOBILEVIT))
    np.testing.assert_array_equal(flipped[0], x[::-1])
    caffe = PreprocessSpec(size=(4, 5), rescale_factor=1.0, image_mean=(123, 117, 104), do_flip_channel_order=True)
    by_hand = (image.astype(float) - [123, 117, 104])[..., ::-1].transpose(2, 0, 1)  # mean in RGB order, then BGR
    np.testing.assert_allclose(normalise(x, caffe), by_hand, atol=1e-4)


# Photos


@pytest.mark.parametrize(
    ("shape", "rounding", "offset"),
    [
        ((2, 5), "floor", (0, 1)), ((2, 5), "round", (0, 2)),  # margin 3: 1 in Hugging Face, round(1.5) in torchvision
        ((7, 2), "floor", (2, 0)), ((7, 2), "round", (2, 0)),  # margin 5: round(2.5) = 2
        ((4, 4), "floor", (1, 1)),
    ],
)  # fmt: skip
def test_centre_crop(shape: tuple[int, int], rounding: Any, offset: tuple[int, int], photo: Any) -> None:
    pixels = noise(*shape)
    spec = PreprocessSpec(size=None, crop_size=(2, 2), crop_rounding=rounding)
    top, left = offset
    np.testing.assert_array_equal(
        load_image(photo(Image.fromarray(pixels)), spec), pixels[top : top + 2, left : left + 2]
    )


def test_a_crop_larger_than_the_image_has_zeros_around(photo: Any) -> None:
    path = photo(Image.fromarray(np.full((1, 2, 3), 9, np.uint8)))
    out = load_image(path, PreprocessSpec(size=None, crop_size=(4, 4)))[..., 0]
    np.testing.assert_array_equal(out, [[0] * 4, [0] * 4, [0, 9, 9, 0], [0] * 4])  # ceil(3 / 2) rows above, as HF pads


@pytest.mark.parametrize(("shape", "resized"), [((10, 20), (5, 10)), ((21, 10), (10, 5)), ((7, 10), (5, 7))])
def test_shortest_edge_keeps_the_aspect_ratio(shape: tuple[int, int], resized: tuple[int, int], photo: Any) -> None:
    image = Image.fromarray(noise(*shape))
    expected = np.asarray(image.resize(resized[::-1], Image.Resampling.BICUBIC))  # int(5 * long / short)
    out = load_image(photo(image), PreprocessSpec(size=5, resample=3, crop_size=resized))
    np.testing.assert_array_equal(out, expected)


def test_box_filter_by_hand(photo: Any) -> None:
    pixels = noise(4, 4)
    out = load_image(photo(Image.fromarray(pixels)), PreprocessSpec(size=(2, 2), resample=Image.Resampling.BOX))
    means = pixels.reshape(2, 2, 2, 2, 3).mean((1, 3))
    assert np.abs(out - means).max() <= 1  # Pillow rounds after each of the two passes


def test_modes_become_rgb(photo: Any) -> None:
    pixels = noise(3, 4, 4)
    grey = load_image(photo(Image.fromarray(pixels[..., 0])), as_is(3, 4))
    np.testing.assert_array_equal(grey, np.repeat(pixels[..., :1], 3, -1))
    rgba = load_image(photo(Image.fromarray(pixels)), as_is(3, 4))
    np.testing.assert_array_equal(rgba, pixels[..., :3])
    palette = Image.fromarray(pixels[..., :3]).quantize(4)
    transparent = photo(palette, "p.png", transparency=b"\x00\x80\xff\x01")
    np.testing.assert_array_equal(load_image(transparent, as_is(3, 4)), np.asarray(palette.convert("RGB")))
    white = photo(Image.new("CMYK", (4, 3), (0, 0, 0, 0)), "cmyk.jpg")
    assert (load_image(white, as_is(3, 4)) == 255).all()
    one = load_image(photo(Image.new("1", (1, 1), 1)), as_is(3, 4))
    assert one.shape == (3, 4, 3)
    assert (one == 255).all()


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_16_bit_grey_is_scaled_not_clipped(name: str, photo: Any) -> None:
    values = np.array([[0, 128, 129, 257], [32768, 65406, 65407, 65535]], np.uint16)
    out = load_image(photo(Image.fromarray(values), name), as_is(2, 4))
    np.testing.assert_array_equal(out[..., 1], np.rint(values / 257))


def test_values_without_a_known_white_are_refused(photo: Any) -> None:
    for values in (np.ones((2, 2), np.float32), np.ones((2, 2), np.int32)):
        with pytest.raises(InputError, match="which value is white"):
            load_image(photo(Image.fromarray(values), "x.tif"), as_is(2, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, photo: Any) -> None:
    """The tag says where row 0 and column 0 of the file lie in the scene (Exif 2.3, tag 0x0112)."""
    scene = noise(2, 3)
    stored = {
        1: scene, 2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1], 5: scene.transpose(1, 0, 2),
        6: np.rot90(scene, 1), 7: scene[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(scene, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = photo(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(load_image(path, as_is(2, 3)), scene)


def test_16_bit_grey_is_turned_too(photo: Any) -> None:
    values = np.array([[0, 65535, 0]], np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(photo(Image.fromarray(values), exif=exif), as_is(3, 1))[:, 0, 0].tolist() == [0, 255, 0]


def test_first_frame_of_an_animation(photo: Any) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "lime")]
    for name in ("a.gif", "a.png", "a.webp"):
        path = photo(
            frames[0], name, save_all=True, append_images=frames[1:], **{"lossless": True} if "w" in name else {}
        )
        assert (load_image(path, as_is(2, 2)) == [255, 0, 0]).all()


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends where its pixels begin."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, pixels))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_001, 10_000), (12_000, 10_000)])
def test_too_many_pixels_are_refused_before_decoding(width: int, height: int, photo: Any) -> None:
    with pytest.raises(InputError, match=r"header states .*more than the limit of 100,000,000 pixels; next: "):
        load_image(photo(png_header(width, height)), PLAIN)


def test_the_limit_holds_for_the_resized_image_too(photo: Any) -> None:
    sliver = photo(Image.new("L", (100_000, 1)))
    with pytest.raises(InputError, match="resized, it would have 25600000 x 256 pixels"):
        load_image(sliver, PreprocessSpec(size=256, crop_size=(224, 224)))
    with pytest.raises(InputError, match="10 pixels"):
        load_image(photo(Image.new("L", (11, 1))), PLAIN, max_pixels=10)


def test_files_that_are_no_photo(photo: Any, tmp_path: Path) -> None:
    whole = photo(Image.fromarray(noise(64, 64)))
    cases = {
        photo(b"this is no photo\n", "text.jpg"): "expected a whole file of BMP",
        photo(b"", "empty.png"): "expected a whole file of BMP",
        photo(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "x.eps"): "expected a whole file of BMP",
        photo(whole.read_bytes()[:3000], "cut.png"): "damaged or unsupported",
        photo(png_header(3, 3), "header.png"): "damaged or unsupported",
        photo(whole.read_bytes()[:33], "stump.png"): "or a stump",
        tmp_path: "Is a directory",
        tmp_path / "absent.jpg": "No such file",
    }
    for path, reason in cases.items():
        with pytest.raises(InputError) as caught:
            load_image(path, PLAIN)
        message = str(caught.value)
        assert message.startswith(f"cannot read the image {path}: ")
        assert reason in message
        assert "; next: " in message
        assert "\n" not in message


FORMATS: dict[str, dict[str, Any]] = {
    "png": {},
    "jpg": {"exif": b"Exif\x00\x00II*\x00"},
    "gif": {},
    "tif": {},
    "bmp": {},
    "webp": {},
    "jp2": {},
}


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 4000), flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4))
def test_damaged_photos_raise_one_kind_of_error(
    suffix: str, cut: int, flips: list[tuple[int, int]], photo: Any
) -> None:
    content = bytearray(photo(Image.fromarray(noise(16, 16)), f"whole.{suffix}", **FORMATS[suffix]).read_bytes())
    for position, value in flips:
        content[position % len(content)] = value
    path = photo(bytes(content[: max(len(content) - cut, 4)] if cut % 2 else content), f"damaged.{suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(InputError):
            assert load_image(path, as_is(16, 16)).shape == (16, 16, 3)


# Where it is found


def test_search_order(tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    metadata = {"onnxplain.preprocess": json.dumps(VIT | {"size": 50})}
    steps = [
        (tmp_path / "config.json", json.dumps(TIMM), 224),
        (tmp_path / "preprocessor_config.json", json.dumps(VIT | {"size": 30}), 30),
        (None, metadata, 50),
        (tmp_path / "net.preprocessor_config.json", json.dumps(VIT | {"size": 40}), 40),
    ]
    known: dict[str, str] = {}
    for place, content, height in steps:  # from the last place to the first: each one wins over those before
        if place is None:
            known = metadata
        else:
            place.write_text(str(content))
        spec, where = find(model, metadata=known)
        assert spec.output_size == (height, height)
        assert where == (str(place) if place else f"{model} (metadata onnxplain.preprocess)")
    given = tmp_path / "mine.json"
    given.write_text(json.dumps(VIT))
    assert find(model, given=given, metadata=metadata) == (PreprocessSpec.from_dict(VIT), str(given))
    assert find(None, metadata=metadata)[0].output_size == (50, 50)


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "vit", "id2label": {}}'
    )  # Hugging Face's own: no preprocessing
    with pytest.raises(UsageError) as caught:
        find(tmp_path / "net.onnx", metadata={})
    message = str(caught.value)
    places = [
        "net.preprocessor_config.json",
        "onnxplain.preprocess",
        f"{tmp_path}/preprocessor_config.json",
        "/config.json",
    ]
    assert [message.find(place) for place in places] == sorted(message.find(place) for place in places)
    assert all(place in message for place in places)
    assert "--preprocess FILE" in message
    assert "--preprocess none" in message
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="in memory"):
        find(None)


def test_a_gradient_model_knows_its_own(tmp_path: Path) -> None:
    model, given = tmp_path / "net.grad.onnx", tmp_path / "mine.json"
    (tmp_path / "net.grad.preprocessor_config.json").write_text(json.dumps(VIT | {"size": 40}))
    metadata = {"onnxplain.gradient_model": "1", "onnxplain.preprocess": json.dumps(VIT)}
    assert find(model, metadata=metadata)[0] == PreprocessSpec.from_dict(VIT)
    given.write_text(json.dumps(PreprocessSpec.from_dict(VIT).to_dict()))
    assert find(model, given=given, metadata=metadata)[0] == PreprocessSpec.from_dict(VIT)
    given.write_text(json.dumps(VIT | {"resample": 3}))
    with pytest.raises(UsageError, match="differs from the preprocessing that is folded into"):
        find(model, given=given, metadata=metadata)
    with pytest.raises(UsageError, match="exported without preprocessing"):
        find(model, metadata={"onnxplain.gradient_model": "1"})


def test_damaged_metadata_is_named() -> None:
    with pytest.raises(InputError, match=r"net\.onnx \(metadata onnxplain\.preprocess\): not valid JSON"):
        find("net.onnx", metadata={"onnxplain.preprocess": "{"})


def test_reading_photos_does_not_import_onnx() -> None:
    code = "import sys, onnxplain.models.preprocess; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared classifiers are not here")
def test_the_shared_sidecars() -> None:
    sidecars = sorted(DATA.glob("*/models/*.preprocessor_config.json"))
    assert len(sidecars) == 10
    for sidecar in sidecars:
        model = sidecar.with_name(sidecar.name.replace(".preprocessor_config.json", ".onnx"))
        spec, where = find(model, metadata={})
        assert where == str(sidecar)
        assert PreprocessSpec.from_dict(spec.to_dict()) == spec
