"""Ablations of several results: which points make a line, what is written, and which results are refused."""

import csv
import itertools
import json

import numpy as np
import pytest

from revelio_jax.benchmark import ablation_plots, ablations, command, figures, results_comparison
from revelio_jax.benchmark.ablations import lines, read_points, varied
from revelio_jax.benchmark.identity import sae_settings
from revelio_jax.benchmark.tasks import CONCEPT, OTHER, Task, TaskPrompt
from revelio_jax.errors import InputError

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

PROMPTS = [
    TaskPrompt("labeled", f"{role}-{i}", role, f"{role} {i}", None, 2.5, 32, 32, {"style": style, "kind": "cat"})
    for role, style in ((CONCEPT, "flat"), (OTHER, "noto"))
    for i in range(8)
]
TASK = Task("style", "flat", "kind", False, tuple(PROMPTS), {"labeled": {"fingerprint": "abc"}})
STRENGTHS = (-0.5, -1.0, -2.0)


def row(method, strength, removed, lost, chosen):
    """A row whose images lose the concept for ``removed`` prompts, and the other label for ``lost`` other prompts."""
    plain = [dict(prompt.labels) for prompt in PROMPTS]
    labels = [dict(label) for label in plain]
    for label in labels[:removed]:
        label["style"] = "noto"
    for label in labels[8 : 8 + lost]:
        label["kind"] = "dog"
    found = figures.measure(TASK, labels, plain, np.zeros((8, 1)), 1)
    figures_of = {"figures": found if chosen else None, "choosing": found if strength else None}
    return {"method": method, "strength": strength, "chosen": chosen, "key": "", "time": None} | figures_of


@pytest.fixture
def result(tmp_path, make_steerer, pipe):
    """A function that writes the results of a run whose SAE has other settings, and returns its folder."""

    def write(name, methods=("steer rule=swap",), concepts=("style=flat",), has_chosen=True, **changes):
        sae = sae_settings(make_steerer(pipe, "clip.layer.2", latents=256, k=20).sae)
        removed = 2 + 2 * (sum(map(ord, name)) % 3)
        rows = [row("plain", 0.0, 0, 0, True)] + [
            row(method, strength, removed + i, 2 * i, has_chosen and i == 1)
            for method in methods
            for i, strength in enumerate(STRENGTHS)
        ]
        tasks = [
            {"concept": concept, "adding": False, "sets": TASK.sets, "prompts": {CONCEPT: 4, OTHER: 4}, "seeds": 1}
            | {"rows": rows}
            for concept in concepts
        ]
        settings = {field: field for field in results_comparison.SETTINGS}
        own = {key: changes.pop(key) for key in list(changes) if key in sae}
        content = settings | {"autoencoder": sae | own, "tasks": tasks} | changes
        folder = tmp_path / name / "benchmark"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(content))
        return str(folder.parent)

    return write


@pytest.fixture
def layers(result):
    names = (f"clip.layer.{number}" for number in (10, 2, 9))
    concepts = ("style=flat", "style=noto")
    return [result(name, concepts=concepts, site=name) for name in names]


def run(*arguments):
    command.main(["ablations", *arguments])


def test_a_line_joins_points_that_differ_in_one_setting(layers):
    points = read_points(layers)
    assert varied(points) == ["site"]
    found = lines(points, "site")
    assert [(line.task, line.settings) for line in found] == [("style=flat", {}), ("style=noto", {})]
    order = [point.settings["site"] for point in found[0].points]
    assert order == ["clip.layer.2", "clip.layer.9", "clip.layer.10"]


def test_capacity_has_a_line_per_k_and_no_single_points(result):
    grid = itertools.product((10, 20), (256, 512))
    runs = [result(f"k{k},{latents}", k=k, latents=latents) for k, latents in grid]
    runs.append(result("layer", site="clip.layer.1"))
    points = read_points(runs)
    assert varied(points) == ["site", "expansion", "k"]
    found = lines(points, "expansion")
    assert [line.settings for line in found] == [{"site": "clip.layer.2", "k": f"k {k}"} for k in (10, 20)]
    assert [[point.settings["expansion"] for point in line.points] for line in found] == [[2, 4], [2, 4]]
    assert [line.settings for line in lines(points, "site")] == [{"expansion": "2x", "k": "k 20"}]
    figure = ablation_plots.draw(found, "expansion")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["k 10", "k 20"]
    assert figure.get_suptitle().startswith("style=flat, clip.layer.2; 4 + 4 prompts")


def test_settings_of_the_method_are_ablated_within_one_result(result):
    paper = "steer rule=paper learned=text"
    methods = (paper, f"{paper} negative_branch=no", f"{paper} positions=content", "steer rule=swap")
    points = read_points([result("a", methods=methods)])
    assert {axis for axis in varied(points) if lines(points, axis)} == {"negative_branch", "positions"}
    (line,) = lines(points, "negative_branch")
    assert list(line.settings.values()) == ["paper", "concept learned from text", "steered positions all"]
    assert {point.settings["negative_branch"] for point in line.points} == {"steered", "not steered"}


@pytest.mark.slow
def test_the_command_writes_plots_and_numbers(layers, tmp_path, capsys):
    out, layers = tmp_path / "out", layers[1:]
    run(*layers, "--out", str(out))
    names = {"layer.png", "ablations.csv", "ablations.md"}
    assert {path.name for path in out.iterdir()} == names | {f"strength_clip_layer_{n}.png" for n in (2, 9)}
    text = (out / "ablations.md").read_text()
    assert "Each point has 4 prompts concept and 4 prompts other, 1 seed." in text
    assert capsys.readouterr().out.startswith(text)
    rows = list(csv.DictReader((out / "ablations.csv").open()))
    assert len(rows) == 2 * 2 * (len(STRENGTHS) + 1) * 3
    (found,) = [
        each
        for each in rows
        if (each["site"], each["concept"], each["strength"]) == ("clip.layer.9", "style=flat", "-1.0")
        and (each["figure"], each["prompts"]) == ("worst", "reported")
    ]
    source = next(point for point in read_points(layers) if point.run == "clip.layer.9").chosen
    assert {name: float(found[name]) for name in ("mean", "low", "high")} == source["worst"]
    assert found["chosen"] == "True"


def test_the_plot_shows_the_figures_of_the_chosen_strengths(layers):
    points = read_points(layers)
    figure = ablation_plots.draw(lines(points, "site"), "site")
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(ablation_plots.TITLES.values())
    drawn = figure.axes[0].containers[0][0].get_ydata().astype(float)
    expected = [1 - point.chosen["outcome"]["concept"]["mean"] for point in lines(points, "site")[0].points]
    np.testing.assert_allclose(drawn, expected)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["2", "9", "10"]
    assert figure.axes[0].get_xlabel() == "hook point clip.layer."


def test_the_strength_plot_marks_the_chosen_strength(layers):
    points = [point for point in read_points(layers) if point.run == "clip.layer.2"]
    ax = ablation_plots.draw_strengths(points).axes[0]
    curve, mark = ax.lines[:2]
    np.testing.assert_array_equal(curve.get_xdata(), sorted(STRENGTHS))
    np.testing.assert_array_equal(mark.get_xdata(), [-1.0])


def test_a_single_result_has_a_strength_plot_only(result, tmp_path):
    run(result("only"), "--out", str(tmp_path / "out"))
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png", ".csv", ".md"}
    assert (tmp_path / "out" / "strength_only.png").is_file()


def earlier(result, tmp_path):
    folder = result("earlier", site="clip.layer.1")
    path = tmp_path / "earlier/benchmark/results.json"
    path.write_text(path.read_text().replace("retention", "removed"))
    return folder


# Results beside the first one, other arguments, and the message.
REFUSED = {
    "judge": (lambda result, _: [result("b", judge="other")], [], "are not comparable: the judge"),
    "concepts": (lambda result, _: [result("b", concepts=("style=noto",))], [], "no concept in common"),
    "equal": (lambda result, _: [result("b")], [], r"base .* and b .* the same settings \(clip.layer.2, 2x, k 20\)"),
    "two": (
        lambda result, _: [result("b", site="clip.layer.1", steps=9)],
        [],
        "no two results differ in one setting alone; they differ in: hook point, training steps",
    ),
    "earlier": (
        lambda *fixtures: [earlier(*fixtures)],
        [],
        "earlier version .KeyError: 'retention'.; run revelio",
    ),
    "no SAE": (lambda result, _: [result("b", autoencoder=None)], [], "no method uses an SAE"),
    "missing": (lambda *_: ["no/such/run"], [], "No such file"),
    "method": (lambda *_: [], ["--method=sld"], "--method is 'sld'; the results have steer rule=swap"),
    "out": (lambda _, path: [], ["--out=pyproject.toml"], "it must be a folder"),
    "flag": (lambda *_: [], ["--size=3"], "unknown flag --size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_results_that_cannot_be_compared_are_refused(result, tmp_path, name):
    others, flags, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        run(result("base"), *others(result, tmp_path), f"--out={tmp_path / 'out'}", *flags)
    assert not (tmp_path / "out").exists()


def test_results_without_steering_or_without_chosen_strengths_are_refused(result):
    with pytest.raises(InputError, match=r"the results have no method steer; pass --method: difference_of_means"):
        run(result("means", methods=("difference_of_means",)))
    with pytest.raises(InputError, match="no strength is chosen in these results"):
        run(*(result(f"not{n}", site=f"clip.layer.{n}", has_chosen=False) for n in (0, 1)))


def test_every_setting_of_steer_is_ablated():
    from revelio_jax.benchmark.variants import SteerSettings

    named = set(SteerSettings.__dataclass_fields__) - {"timesteps", "ramp"} | {"schedule"}
    assert named <= set(ablations.AXES)
