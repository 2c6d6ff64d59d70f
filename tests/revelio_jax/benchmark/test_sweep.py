"""A sweep chooses a strength on one half of the prompts and reports it on the other half."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from revelio_jax.benchmark import curve, sweep
from revelio_jax.benchmark.measurement import Outcome
from revelio_jax.benchmark.sweep import describe, suggest
from revelio_jax.errors import report_errors
from tests.helpers import ROOT

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def outcome(first: list[float], second: list[float]) -> Outcome:
    """Return an outcome with the shares ``first`` on prompts that choose, and ``second`` on prompts that report."""
    concept = np.array([share for pair in zip(first, second, strict=True) for share in pair])
    return Outcome(concept, np.full(4, 0.5), np.full(4, 0.75), np.full(4, 1.0))


OUTCOMES = {
    -2.0: outcome([0, 0], [0, 0]),
    -1.5: outcome([0, 0.2], [1, 0.5]),
    -1.0: outcome([0.5, 0.5], [0, 0]),
    0.0: outcome([1, 1], [1, 1]),
}


def test_the_smallest_sufficient_strength_is_suggested_and_reported_on_the_other_half():
    suggestion = suggest(OUTCOMES, 0.9)
    assert suggestion["strength"] == -1.5  # on the reporting half it would be -1
    assert suggestion["chosen_at"] == pytest.approx(0.9)
    assert suggestion["reported"]["concept"]["mean"] == 0.75
    assert "suggested strength: -1.5" in describe("flat", suggestion)
    assert "0.750" in describe("flat", suggestion)
    assert suggest(OUTCOMES, 0.95)["strength"] == -2


def test_a_target_that_no_strength_reaches_gives_no_suggestion():
    few = {strength: OUTCOMES[strength] for strength in (-1.0, 0.0)}
    suggestion = suggest(few, 0.9)
    assert (suggestion["strength"], suggestion["reported"]) == (None, None)
    assert "no strength" in describe("flat", suggestion)
    assert "50%, at strength -1" in describe("flat", suggestion)


@pytest.mark.parametrize("target", [None, 0.9, 1.0])
def test_the_curve_has_every_figure_at_every_strength(tmp_path, target):
    suggestion = target and suggest({s: OUTCOMES[s] for s in (-1.5, 0.0)}, target)
    summaries = {strength: outcome.summary() for strength, outcome in OUTCOMES.items()}
    figure = curve.draw(summaries, "flat", suggestion)
    drawn = {line.get_label(): line for ax in figure.axes for line in ax.lines if line.get_marker() == "."}
    assert len([line for ax in figure.axes for line in ax.lines if line.get_marker() == "."]) == 4
    np.testing.assert_array_equal(drawn["concept in the image"].get_xdata(), sorted(OUTCOMES))
    np.testing.assert_allclose(drawn["concept in the image"].get_ydata(), [0, 0.425, 0.25, 1])
    notes = {
        None: "",
        0.9: "target: 90% removed; suggested: -1.5",
        1.0: "target: 100% removed; no strength reaches the target",
    }
    assert figure.axes[1].get_title("right") == notes[target]
    figure.savefig(tmp_path / "curve.png")


@pytest.fixture
def command(tmp_path, sae_folder):
    """Return a function that sweeps a random SAE on the miniature in its own process."""
    config = json.loads((sae_folder / "cfg.json").read_text())
    config["metadata"]["model_id"] = "extract/miniature/sd"
    (sae_folder / "cfg.json").write_text(json.dumps(config))

    def run(*flags: str) -> subprocess.CompletedProcess:
        settings = ["--config=configs/mini_sd.py", f"--config.run={tmp_path / 'run'}"]
        settings += ["--config.steer.steps=2", "--config.steer.rule=contrast", f"--sae={sae_folder}"]
        argv = [sys.executable, "-m", "revelio_jax.steering", "sweep", *settings, *flags]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)

    return run


@pytest.mark.slow
def test_a_sweep_writes_strip_curve_and_results(command, tmp_path):
    done = command("--concept=style=flat", "--strength=0,-4,-2", "--measure=4", "--seeds=2", "--suggest=0.01")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "steering"
    assert sorted(file.name for file in folder.iterdir()) == [
        "sweep.json",
        "sweep_flat.png",
        "sweep_flat_curve.png",
    ]
    results = json.loads((folder / "sweep.json").read_text())
    assert results["strengths"] == [-4, -2, 0]
    assert set(results["measured"]) == {"-4", "-2", "0"}
    assert results["settings"]["rule"] == "contrast"
    assert len(results["seeds"]) == 2
    for file in ("grid", "curve"):
        assert Image.open(results[file]).size > (300, 100)
    suggestion = results["suggestion"]
    shown = "no strength" if suggestion["strength"] is None else f"strength: {suggestion['strength']:g}"
    assert shown in done.stdout


@pytest.mark.slow
def test_a_text_that_is_not_a_label_is_drawn_but_not_judged(command, tmp_path):
    done = command("--concept=shiny", "--prompt=emoji of a cat", "--strength=-1,0")
    assert done.returncode == 0, done.stderr
    assert "curve" not in done.stdout
    assert "measured" not in json.loads((tmp_path / "run" / "steering" / "sweep.json").read_text())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--concept=flat", "--suggest=2"], "--suggest is '2'"),
        (["--concept=flat", "--suggest=much"], "--suggest is 'much'"),
        (["--concept=flat", "--suggest=0.9", "--measure=1"], "--measure to at least 2"),
        (["--concept=flat", "--suggest=0.9", "--config.steer.judge="], "needs a judge"),
        (["--concept=shiny", "--prompt=a", "--suggest=0.9"], "can only measure a label"),
        (["--concept=style=shiny"], "values of style: flat"),
        (["--concept=flat", "--seeds=0"], "--seeds is 0"),
        (["--concept=flat", "--strength=a"], "finite numbers"),
        ([], "--concept is missing"),
    ],
)
def test_wrong_input_is_one_line(monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(ROOT)
    config = ["--config=configs/mini_sd.py", f"--config.run={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as stop, report_errors():
        sweep.main([*config, *flags])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()
