"""Steering is measured with judges that detect a concept: removal, and what is kept on prompts without it."""

import json
import types

import numpy as np
import pytest

from revelio_jax.benchmark import command as benchmark
from revelio_jax.benchmark import curve, measurement, results, steer, sweep
from revelio_jax.benchmark.bench import make_adding_bench, make_bench
from revelio_jax.benchmark.judgment import DETECTED, Judgment, detection
from revelio_jax.benchmark.measurement import Outcome, figure_names, interval, measure, worst
from revelio_jax.benchmark.sweep import describe, suggest
from revelio_jax.config import SteerConfig
from revelio_jax.errors import InputError, report_errors
from revelio_jax.pipelines.sampling import Samples
from tests.helpers import ROOT

ROWS = [
    {"prompt": f"prompt {i}", "concept": concept, "note": ""} for i, concept in enumerate(["nudity", "none", ""] * 4)
]
REDNESS = "def red(pixels):\n    return pixels[..., 0].mean((1, 2)) / 255\n"


@pytest.fixture
def judged(monkeypatch):
    """A function that measures a bench; the judge sees the concept in the images whose numbers are ``seen``."""

    def run(bench, seen, seeds=(0,)):
        def sample(_pipe, prompts, *_, **__):
            numbers = np.arange(len(prompts), dtype=np.uint8)[:, None, None, None]
            return Samples(np.broadcast_to(numbers, (len(prompts), 8, 8, 3)), np.zeros(len(prompts), bool))

        monkeypatch.setattr(measurement, "sample", sample)
        judge = types.SimpleNamespace(judge=lambda images: [detection(int(x[0, 0, 0]) in seen, {}) for x in images])
        return measure(None, judge, bench, list(seeds), SteerConfig())

    return run


def test_a_detected_label_needs_no_other_label():
    bench = make_bench(ROWS, "concept", "nudity", 3, (DETECTED,))
    assert {row["concept"] for row in bench.with_concept} == {"nudity"}
    assert {row["concept"] for row in bench.without} == {"none"}  # the empty label is neither
    assert (len(bench.with_concept), len(bench.without), bench.other, bench.detected) == (3, 3, None, True)
    with pytest.raises(InputError, match="no prompt with it has a value for every label"):
        make_bench(ROWS, "concept", "nudity", 3, ("concept",))  # the notes are empty
    with pytest.raises(InputError, match="the judge predicts only style"):
        make_bench(ROWS, "concept", "nudity", 3, ("style",))


def test_a_concept_that_is_no_label_is_measured_on_all_prompts(judged):
    bench = make_bench(ROWS, None, "naked, nude", 5, (DETECTED,))
    assert (bench.prompt_count, bench.without, bench.value) == (5, [], "naked, nude")
    assert len({row["prompt"] for row in bench.with_concept}) == 5
    outcome = judged(bench, {0, 1})
    assert outcome.concept.tolist() == [1, 1, 0, 0, 0]
    assert set(outcome.summary()) == {"concept"}
    with pytest.raises(InputError, match="the column None; the judge predicts only style, category"):
        make_bench(ROWS, None, "naked, nude", 5, ("style", "category"))


def test_removal_and_what_is_kept_are_shares_of_detections(judged):
    bench = make_bench(ROWS, "concept", "nudity", 2, (DETECTED,))
    outcome = judged(bench, {0, 2, 3, 4}, seeds=(0, 1))  # images 0-3 are of prompts with the concept
    assert outcome.concept.tolist() == [0.5, 1]
    assert outcome.others_absent.tolist() == [0.5, 1]
    assert (outcome.kept.size, outcome.others_label.size, outcome.others_kept.size) == (0, 0, 0)
    half = outcome.half(1)
    assert (half.concept.tolist(), half.others_absent.tolist()) == ([1], [1])
    summary = outcome.summary()
    assert summary["concept"] == interval(np.array([0.5, 1]))
    assert list(figure_names(summary).values()) == ["concept in the image", "other prompts: concept not in the image"]


def test_a_judge_of_one_label_column_measures_no_other_label(monkeypatch):
    rows = [{"prompt": name, "style": name, "name": name} for name in ("flat", "noto")]
    bench = make_bench(rows, "style", "flat", 2, ("style",))
    assert bench.other is None
    pixels = Samples(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, bool))
    monkeypatch.setattr(measurement, "sample", lambda *_, **__: pixels)
    judge = types.SimpleNamespace(judge=lambda images: [Judgment({"style": "noto"}, {})] * len(images))
    outcome = measure(None, judge, bench, [0], SteerConfig())
    assert (outcome.concept.tolist(), outcome.others_label.tolist()) == ([0], [1])
    summary = outcome.summary()
    assert list(figure_names(summary).values()) == ["concept in the image", "other prompts: same label correct"]


def outcome(concept: float, without: float | None) -> Outcome:
    empty = np.zeros(0)
    return Outcome(np.full(4, concept), empty, empty, empty, empty if without is None else np.full(4, without))


def test_the_worst_figure_of_detections():
    assert worst(outcome(0.1, 0.4), outcome(0.9, 0.8)) == pytest.approx(0.5)
    assert worst(outcome(0.3, 0.8), outcome(0.9, 0.8)) == pytest.approx(0.7)
    assert worst(outcome(0.3, None), outcome(0.9, None)) == pytest.approx(0.7)  # removal, not adding
    assert worst(outcome(0.3, None), outcome(0.0, None), adding=True) == pytest.approx(0.3)


@pytest.mark.parametrize("without", [0.75, None])
def test_curve_suggestion_and_table_have_the_figures_of_detections(without):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    outcomes = {-1.0: outcome(0.0, without), 0.0: outcome(1.0, without)}
    suggestion = suggest(outcomes, 0.9)
    assert suggestion["strength"] == -1
    lines = describe("nudity", suggestion).splitlines()
    assert len(lines) == (2 if without is None else 3)
    assert ("concept not in the image" in lines[-1]) == (without is not None)
    summaries = {strength: each.summary() for strength, each in outcomes.items()}
    figure = curve.draw(summaries, "nudity", suggestion)
    drawn = [[line.get_label() for line in ax.lines if line.get_marker() == "."] for ax in figure.axes]
    assert drawn == [["concept in the image"], [] if without is None else ["concept not in the image"]]
    figures = {"outcome": summaries[0.0], "distance": None, "by_set": {}, "worst": summaries[0.0]["concept"]}
    row = {"method": "plain", "strength": 0.0, "chosen": True, "figures": figures, "choosing": None}
    row |= {"quality": {}, "nouns": None, "time": None}
    text = results.markdown({"concept": "c=nudity", "adding": False, "prompts": {}, "seeds": 1, "rows": [row]})
    header, _, cells = text.splitlines()[2:5]
    assert header.count("|") == cells.count("|") == (5 if without is None else 6)


def test_a_bench_for_adding_is_detected_too():
    rows = [row | {"note": "x"} for row in ROWS]
    bench = make_adding_bench(rows, "concept", "nudity", 9, (DETECTED,))
    assert (len(bench.with_concept), bench.adding, bench.detected) == (4, True, True)


@pytest.fixture
def command(tmp_path, sae_folder, monkeypatch, capsys):
    """A function that runs a command with a random SAE, the miniature and a user's judge of redness."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"judge_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(REDNESS)
    config = json.loads((sae_folder / "cfg.json").read_text())
    config["metadata"]["model_id"] = "extract/miniature/sd"
    (sae_folder / "cfg.json").write_text(json.dumps(config))

    def run(main, *flags: str) -> tuple[str, dict]:
        main(
            [
                "--config=configs/mini_sd.py",
                f"--config.run={tmp_path / 'run'}",
                "--config.steer.steps=2",
                "--config.steer.rule=contrast",
                f"--config.steer.judge={module}:red",
                *([] if main is benchmark.main else [f"--sae={sae_folder}"]),
                *flags,
            ]
        )
        name = "sweep.json" if main is sweep.main else "results.json"
        return capsys.readouterr().out, json.loads((tmp_path / "run" / "steering" / name).read_text())

    return run


@pytest.mark.slow
def test_a_text_is_steered_and_measured_with_a_users_judge(command):
    out, saved = command(steer.main, "--concept=crimson red", "--strength=-1,0", "--measure=3")
    assert set(saved["measured"]["-1"]) == {"concept"}
    assert len(saved["prompts"]) == 5  # of all prompts
    assert saved["judge"]["threshold"] == 0.5
    assert "3 prompts with the concept and 0 without it" in out
    assert "others" not in out


@pytest.mark.slow
def test_a_label_is_swept_with_a_users_judge(command):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    settings = '--config.steer.judge_settings={"threshold": 0.0}'
    flags = ["--concept=name=red heart", "--strength=-1,0", "--measure=2", "--suggest=0.5", settings]
    out, saved = command(sweep.main, *flags)
    assert saved["measured"]["-1"]["concept"]["mean"] == 1  # every image is at least as red
    assert saved["measured"]["-1"]["others_absent"]["mean"] == 0
    assert saved["suggestion"]["strength"] is None
    assert "no strength removes 'red heart'" in out
    assert saved["settings"]["judge_settings"] == '{"threshold": 0.0}'


def test_a_judge_that_detects_one_concept_is_not_asked_for_two(command, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop, report_errors():
        command(benchmark.main, "--concept=style=flat", "--concept=style=noto")
    assert stop.value.code == 2
    assert "--concept is given 2 times; the judge" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
