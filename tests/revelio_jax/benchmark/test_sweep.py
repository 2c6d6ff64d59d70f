"""A strength is suggested by one half of the prompts, and what it does is said by the other."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from revelio_jax.benchmark import curve, sweep
from revelio_jax.benchmark.measurement import Outcome
from revelio_jax.benchmark.sweep import said, suggest
from revelio_jax.errors import reported
from tests.helpers import ROOT

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def outcome(first: list[float], second: list[float]) -> Outcome:
    """Shares with the concept: ``first`` of the prompts that choose, ``second`` of those that report."""
    concept = np.array([share for pair in zip(first, second, strict=True) for share in pair])
    return Outcome(concept, np.full(4, 0.5), np.full(4, 0.75), np.full(4, 1.0))


OUTCOMES = {
    -2.0: outcome([0, 0], [0, 0]),
    -1.5: outcome([0, 0.2], [1, 0.5]),
    -1.0: outcome([0.5, 0.5], [0, 0]),
    0.0: outcome([1, 1], [1, 1]),
}


def test_the_smallest_strength_that_is_enough_is_suggested_and_the_other_half_reports():
    suggestion = suggest(OUTCOMES, 0.9)
    assert suggestion["strength"] == -1.5  # by the reporting half it would be -1
    assert suggestion["chosen_at"] == pytest.approx(0.9)
    assert suggestion["reported"]["concept"]["mean"] == 0.75
    assert "suggested strength: -1.5" in said("flat", suggestion)
    assert "0.750" in said("flat", suggestion)
    assert suggest(OUTCOMES, 0.95)["strength"] == -2


def test_that_no_strength_is_enough_is_said():
    few = {strength: OUTCOMES[strength] for strength in (-1.0, 0.0)}
    suggestion = suggest(few, 0.9)
    assert (suggestion["strength"], suggestion["reported"]) == (None, None)
    assert "no strength" in said("flat", suggestion)
    assert "50% at -1" in said("flat", suggestion)


@pytest.mark.parametrize("wanted", [None, 0.9, 1.0])
def test_the_curve_has_every_figure_at_every_strength(tmp_path, wanted):
    suggestion = wanted and suggest({s: OUTCOMES[s] for s in (-1.5, 0.0)}, wanted)
    summaries = {strength: outcome.summary() for strength, outcome in OUTCOMES.items()}
    figure = curve.draw(summaries, "flat", suggestion)
    drawn = {line.get_label(): line for ax in figure.axes for line in ax.lines if line.get_marker() == "."}
    assert len([line for ax in figure.axes for line in ax.lines if line.get_marker() == "."]) == 4
    np.testing.assert_array_equal(drawn["concept in the picture"].get_xdata(), sorted(OUTCOMES))
    np.testing.assert_allclose(drawn["concept in the picture"].get_ydata(), [0, 0.425, 0.25, 1])
    note = figure.axes[1].get_title("right")
    assert (
        note
        == {None: "", 0.9: "wanted: 90% removed; suggested: -1.5", 1.0: "wanted: 100% removed; none does it"}[wanted]
    )
    figure.savefig(tmp_path / "curve.png")


@pytest.fixture
def command(tmp_path, sae_folder):
    """``command(*flags)``: the sweep of a random SAE on the miniature, in a process of its own."""
    config = json.loads((sae_folder / "cfg.json").read_text())
    config["metadata"]["model_id"] = "extract/miniature/sd"
    (sae_folder / "cfg.json").write_text(json.dumps(config))

    def run(*flags: str) -> subprocess.CompletedProcess:
        settings = ["--config=configs/mini_sd.py", f"--config.run={tmp_path / 'run'}"]
        settings += ["--config.steer.steps=2", "--config.steer.rule=contrast", f"--sae={sae_folder}"]
        argv = [sys.executable, "-m", "revelio_jax.steering", "sweep", *settings, *flags]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)

    return run


def test_a_sweep_writes_its_grid_its_curve_and_what_it_found(command, tmp_path):
    done = command("--concept=style=flat", "--strength=0,-4,-2", "--measure=4", "--seeds=2", "--suggest=0.01")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "steering"
    assert sorted(file.name for file in folder.iterdir()) == [
        "sweep.json",
        "sweep_flat.png",
        "sweep_flat_curve.png",
    ]
    found = json.loads((folder / "sweep.json").read_text())
    assert found["strengths"] == [-4, -2, 0]
    assert set(found["measured"]) == {"-4", "-2", "0"}
    assert found["settings"]["rule"] == "contrast"
    assert len(found["seeds"]) == 2
    for file in ("grid", "curve"):
        assert Image.open(found[file]).size > (300, 100)
    suggestion = found["suggestion"]
    shown = "no strength" if suggestion["strength"] is None else f"strength: {suggestion['strength']:g}"
    assert shown in done.stdout


def test_a_text_without_labels_is_drawn_and_not_judged(command, tmp_path):
    done = command("--concept=shiny", "--prompt=emoji of a cat", "--strength=-1,0")
    assert done.returncode == 0, done.stderr
    assert "curve" not in done.stdout
    assert "measured" not in json.loads((tmp_path / "run" / "steering" / "sweep.json").read_text())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--concept=flat", "--suggest=2"], "--suggest is '2'"),
        (["--concept=flat", "--suggest=much"], "--suggest is 'much'"),
        (["--concept=flat", "--suggest=0.9", "--measure=1"], "--measure to 2"),
        (["--concept=flat", "--suggest=0.9", "--config.steer.judge="], "needs a judge"),
        (["--concept=shiny", "--prompt=a", "--suggest=0.9"], "labels no prompts"),
        (["--concept=style=shiny"], "values of style: flat"),
        (["--concept=flat", "--seeds=0"], "--seeds is 0"),
        (["--concept=flat", "--strength=a"], "finite numbers"),
        ([], "--concept is missing"),
    ],
)
def test_wrong_input_is_one_line(monkeypatch, capsys, tmp_path, flags, says):
    monkeypatch.chdir(ROOT)
    config = ["--config=configs/mini_sd.py", f"--config.run={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as stop, reported():
        sweep.main([*config, *flags])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line
    assert not (tmp_path / "run").exists()
