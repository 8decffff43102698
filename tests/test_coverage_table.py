"""The page docs/coverage.md says what was found, and nothing better."""

from __future__ import annotations

import pytest

from bench.coverage.table import Row, counts, gaps, latest, page

SIZE = {"nodes": 10, "weight_bytes": 2_000_000}
SOUND = {
    "classifier": SIZE, "gradient": SIZE, "cpu_seconds": 0.5, "logits_error": 1e-6, "cosine": [1.0, 0.99999],
    "torch_float32": [1.0, 1.0], "gradient_to_forward": 2.5, "batch": 0,
}  # fmt: skip
NAME = "torchvision-resnet18-dynamo"


def row(step: str, name: str = NAME, **found: object) -> Row:
    return {"name": name, "step": step, "key": "abc", "date": "2026-01-01", "versions": {"onnx": "1"}} | found


def passed(*rows: Row) -> list[int]:
    """The numbers of the last line of the counts, behind the label: how many passed, of however many were asked."""
    return [int(cell.split()[0]) for cell in counts(latest(rows)).splitlines()[-1].split("|")[2:-1]]


def test_what_passes_is_counted() -> None:
    rows = (
        row("gradient", **SOUND),
        row("openvino", cosine=[1.0, 1.0]),
        row("tensorrt", parse_seconds=0.1, engine_bytes=1, build_seconds=2.0),
    )
    assert passed(*rows) == [1, 1, 1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    "wrong", [{"cosine": [1.0, 0.99]}, {"logits_error": 0.1}, {"cosine": [1.0, float("nan")]}], ids=str
)
def test_a_wrong_gradient_is_not_counted_as_right(wrong: dict[str, object]) -> None:
    assert passed(row("gradient", **SOUND | wrong)) == [1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_a_wrong_gradient_is_in_bold() -> None:
    text = page(latest([row("gradient", **SOUND), row("openvino", cosine=[0.5, 1.0])]), {})
    assert "**5e-01**" in text


def test_the_last_result_counts() -> None:
    refused = row("gradient", gaps=[{"op": "Mystery", "why": "no gradient rule", "nodes": 2}])
    assert passed(refused, row("gradient", **SOUND))[2] == 1
    assert passed(row("gradient", **SOUND), refused)[2] == 0


def test_refusals_stand_with_their_reasons() -> None:
    refused = row("gradient", gaps=[{"op": "Mystery", "why": "no gradient rule", "nodes": 2}])
    assert gaps(latest([refused])) == [("Mystery", [NAME], "no gradient rule")]
    text = page(latest([refused, row("tensorrt", refused="no importer")]), {"timm-volo_d1_224-torchscript": "col2im"})
    for reason in ("no gradient rule", "no importer", "col2im"):
        assert reason in text
