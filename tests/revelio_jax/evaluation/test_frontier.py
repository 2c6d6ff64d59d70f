"""The frontier draws the measures in the files of runs, and refuses runs that are not comparable."""

import csv
import json

import numpy as np
import pytest

from revelio_jax import plot
from revelio_jax.errors import InputError
from revelio_jax.evaluate import evaluate
from revelio_jax.evaluation import frontier, measures
from revelio_jax.evaluation.measures import LOWER, Measure

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
FVU = Measure("FVU", LOWER)


@pytest.fixture(scope="module")
def evaluation(trained):
    return evaluate(trained)


@pytest.fixture
def run(tmp_path, evaluation):
    """A function that writes the evaluation of a run with another L0 and other fields, and returns its folder."""

    def write(name, l0=3.0, architecture="topk", imported=None, **fields):
        (tmp_path / name).mkdir()
        sae = evaluation["autoencoder"] | {"architecture": architecture, "imported": imported}
        content = evaluation | {"l0": l0, "fvu": 1 / l0, "autoencoder": sae} | fields
        (tmp_path / name / "evaluation.json").write_text(json.dumps(content))
        return str(tmp_path / name)

    return write


INTERVAL = {"mean": 0.5, "low": 0.4, "high": 0.7}


def add_measures(folder, path):
    """Write the files of the other commands, as far as the frontier reads them."""
    sparse = {"run": folder, "label": "style", "probe": "sparse", "input": "latents", "timestep": 1}
    sparse |= {"best_f1": 0.25, "auroc": {"1": 0.5, "2": 0.6}}
    absorption = sparse | {"probe": "absorption", "fraction_absorption": 0.75, "full_absorption": None}
    other = sparse | {"run": "elsewhere", "best_f1": 1.0}
    files = {
        "latents/summary.json": {
            "measures": {"monosemanticity": {"measured": INTERVAL, "chance": 0.1}, "moran": {"measured": None}},
            "purity": {"style": {"measured": {"purity": INTERVAL}}},
        },
        "splice.json": {"figures": {"judge": {"recovered": {"trained SAE": INTERVAL}}, "loss": {"recovered": {}}}},
        "probes.json": {
            "rows": [
                sparse,
                sparse | {"best_f1": 0.75, "timestep": 2},
                absorption,
                sparse | {"input": "activations"},
                other,
            ]
        },
    }
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(json.dumps(content))


def test_measures_come_from_all_files_of_a_run(run, tmp_path, evaluation):
    folder = run("a")
    add_measures(folder, tmp_path / "a")
    found = {measure.title: value for measure, value in measures.read(folder).measures.items()}
    assert found["cosine"] == (evaluation["cosine"], None, None)
    assert found["largest cosine with another latent"].mean == evaluation["redundancy"]["quartiles"][1]
    for title in ("monosemanticity", "purity of style", "recovered share: judge"):
        assert found[title] == (0.5, 0.4, 0.7)
    assert found["F1 of the best latent, style"].mean == 0.5  # of two timesteps
    assert found["AUROC of 1 latents, style"].mean == 0.5
    assert found["absorbed fraction, style"].mean == 0.75
    assert not {"moran", "fully absorbed, style", "recovered share: loss"} & set(found)


def test_a_line_has_one_architecture_in_ascending_l0(run):
    saes = [measures.read(run(f"{name}{l0}", l0, name)) for name in ("topk", "topk Matryoshka") for l0 in (20.0, 10.0)]
    saes.append(measures.read(run("other", 5.0, "jumprelu", "folder")))
    found = {label: [sae.l0 for sae in own] for label, own in frontier.lines(saes).items()}
    assert found == {"jumprelu (imported)": [5.0], "topk": [10.0, 20.0], "topk Matryoshka": [10.0, 20.0]}
    figure = frontier.draw(saes)
    panel = figure.axes[0]
    assert panel.get_title(loc="left") == "FVU \N{DOWNWARDS ARROW}"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(found)
    assert [ax.axison for ax in figure.axes] == [True] * 4 + [False] * 2  # four measures
    drawn = {line.get_label(): line.get_ydata() for line in panel.lines}
    np.testing.assert_allclose(drawn["topk"], [1 / 10, 1 / 20])


def test_other_dictionary_sizes_and_hook_points_have_their_own_lines(run, evaluation):
    size = evaluation["autoencoder"] | {"latents": 4096}
    saes = [measures.read(each) for each in (run("a"), run("b", autoencoder=size), run("c", site="clip.layer.9"))]
    assert list(frontier.lines(saes)) == [
        "topk, clip.layer.1, 48 latents",
        "topk, clip.layer.1, 4,096 latents",
        "topk, clip.layer.9, 48 latents",
    ]


def test_the_command_writes_a_plot_and_the_numbers(run, tmp_path, capsys):
    runs = [run("a", 10.0), run("b", 20.0)]
    add_measures(runs[0], tmp_path / "a")
    plot.main(["--frontier", *runs])
    assert capsys.readouterr().out == f"{tmp_path / 'frontier.png'}\n"
    rows = list(csv.DictReader((tmp_path / "frontier.csv").open()))
    found = {(row["run"], row["measure"]): (row["mean"], row["low"]) for row in rows}
    assert found[runs[1], "FVU"] == ("0.05", "")
    assert found[runs[0], "monosemanticity"] == ("0.5", "0.4")


def test_runs_that_are_not_evaluated_or_not_comparable_are_refused(run, tmp_path):
    first = run("a")
    with pytest.raises(InputError, match=r"evaluation\.json: no such file; run revelio evaluate first"):
        plot.main(["--frontier", first, str(tmp_path)])
    with pytest.raises(InputError, match=r"different rows of clip\.layer\.1: on \d+ and 7 held-out rows"):
        plot.main(["--frontier", first, run("b", rows=7)])
    with pytest.raises(InputError, match="or of other stores"):
        plot.main(["--frontier", first, run("c", stores="another")])
    assert not (tmp_path / "frontier.png").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluation.json", "{"),
        ("evaluation.json", '{"step": 1}'),
        ("evaluation.json", "[" * 100_000),
        ("splice.json", "[]"),
        ("splice.json", '{"figures": 3}'),
        ("probes.json", '{"rows": [1]}'),
    ],
)
def test_a_broken_file_is_refused_with_its_name(run, tmp_path, file, content):
    folder = run("a")
    (tmp_path / "a" / file).write_text(content)
    with pytest.raises(InputError, match=rf"{file} is malformed or of an earlier version"):
        measures.read(folder)
