"""Arguments at random: never a traceback, always one of the exit codes that are documented."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAST, Place, classifier, run

from onnxplain.cli.main import COMMANDS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("fuzz"))
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))  # where words that are taken for files may go
    place.add_model("m.onnx", classifier())
    place.add_photo("a.png")
    assert run("explain", place.model, place.root / "a.png", *FAST, "-o", place.root / "done").exit_code == 0
    yield place
    monkeypatch.undo()


FLAGS = [
    "-o", "--method", "--set", "--target", "--seed", "--reduce", "--preprocess", "--output-name", "-b", "--threads",
    "--on", "--overwrite", "--format", "--protocol", "--step", "--key", "--image", "--curves", "--classifier",
    "--background", "--no-verify", "-v", "-q", "--progress", "--traceback=", "--",
]  # fmt: skip
VALUES = [
    "{root}/m.onnx", "{root}/a.png", "{root}/done", "{root}/done/a.ig.npz", "{root}/new", "{root}/none", "{root}",
    "ig", "saliency", "steps=2", "ig.steps=0", "0", "3", "-1", "1e9", "9999999999999999999999", "sum", "none", "json",
    "csv", "rise", "agi_isa", "logits", "attribution", "cpu", "", "=", ".", "\x1b[31m", "ß",
]  # fmt: skip
EXTREME = {
    "gig": ["steps=99999999999", "fraction=1e-9", "max_dist=1e400", "anchors=0"],
    "smoothgrad": ["noise=1e39", "noise=-1", "samples=1e9"],
    "blur-ig": ["max_sigma=1e39", "grad_step=1e-400", "steps=0"],
    "isa": ["eta1=1e400", "eta1=1e39", "eta2=1e-400", "s=1e39", "s=1e-300", "t1=99999999999", "k=99999999999999999999"],
    "ig": ["steps=99999999999", "steps=1e400", "steps=-1", "baseline=1e39"],
    "credible": ["kernels=99999999999", "kernels=3,,5", "delta=1e-400", "eta=1e39", "epsilon=1e999", "max_iter=1e9"],
}
flags = st.sampled_from(FLAGS)
values = st.one_of(st.sampled_from(VALUES), st.text(max_size=5).filter(lambda text: "\0" not in text))
anything = st.lists(st.one_of(flags, values), max_size=9)
# nearer to what is meant: files first, then options with a value each
plausible = st.builds(
    lambda files, options: ["{root}/m.onnx", *files, *(word for pair in options for word in pair)],
    st.lists(st.sampled_from(["{root}/a.png", "{root}/done/a.ig.npz"]), max_size=2),
    st.lists(st.tuples(flags, values), max_size=5),
)


@settings(max_examples=200)
@given(command=st.sampled_from([name for name in COMMANDS if name != "demo"]), args=st.one_of(anything, plausible))
def test_no_arguments_give_a_traceback(world, command, args):
    args = ["no" if arg == "{root}/m.onnx" and args[:i][-1:] == ["-o"] else arg for i, arg in enumerate(args)]
    result = run(command, *(arg.replace("{root}", str(world.root)) for arg in args))
    assert result.exit_code in range(6)
    assert "Traceback" not in result.output
    assert "internal error" not in result.output
    if result.exit_code not in (0, 3) and "Usage" not in result.output:
        assert "error: " in result.stderr


@pytest.mark.parametrize(("method", "setting"), [(id, setting) for id, all in EXTREME.items() for setting in all])
def test_no_parameter_gives_a_traceback(world, method, setting):
    out = world.root / f"{method}-{setting}"
    result = run("explain", world.model, world.root / "a.png", "--method", method, "--set", setting, "-o", out)
    assert result.exit_code in (0, 2), result.output
    assert "internal error" not in result.output


@pytest.mark.parametrize("step", ["1", "63", "64", "65", "1" + 22 * "0"])
def test_no_step_gives_a_traceback(world, step):
    result = run("score", world.model, world.root / "done" / "a.ig.npz", "--step", step)
    assert (result.exit_code, result.stderr) == (0, "")
