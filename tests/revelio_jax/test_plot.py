"""The plot shows the recorded metrics of its runs, and bad input is one line."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from revelio_jax import plot
from revelio_jax.errors import InputError
from revelio_jax.evaluate import evaluate

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture
def runs(tmp_path, trained):
    """Folders of two runs; only the first was evaluated."""
    evaluate(trained)
    for name in ("first", "second"):
        shutil.copytree(trained.run, tmp_path / "runs" / name, ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "runs/second/evaluation.json").unlink()
    lines = (tmp_path / "runs/second/metrics.jsonl").read_text().splitlines()
    half = [json.dumps(json.loads(line) | {"loss": 1e-3, "dead_fraction": 0.0}) for line in lines[:6]]
    (tmp_path / "runs/second/metrics.jsonl").write_text("\n".join(half) + "\n")
    return [str(tmp_path / "runs/first"), str(tmp_path / "runs/second")]


def metrics(run, field):
    return [json.loads(line)[field] for line in pathlib.Path(run, "metrics.jsonl").read_text().splitlines()]


def test_curves_are_the_metrics(runs):
    figure = plot.draw([plot.read_run(run) for run in runs])
    for ax, field in zip(figure.axes, plot.CURVES, strict=False):
        assert len(ax.lines) == 2
        for run, line in zip(runs, ax.lines, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), metrics(run, "step"))
            np.testing.assert_array_equal(line.get_ydata(), metrics(run, field))
    scales = [ax.get_yscale() for ax in figure.axes]
    assert (scales[0], scales[2:]) == ("log", ["linear", "linear"])  # the scale of FVU depends on its range
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first", "second"]


def test_the_histogram_is_the_evaluation(runs):
    first, second = (plot.read_run(run) for run in runs)
    evaluation = json.loads(pathlib.Path(runs[0], "evaluation.json").read_text())
    assert first.density.never == evaluation["dead_fraction"]
    assert first.density.latents.sum() + first.density.never == pytest.approx(1)
    np.testing.assert_allclose(  # 48 latents
        first.density.latents * 48, evaluation["density_histogram"]["latents"], atol=1e-9
    )
    assert second.density is None
    density = plot.draw([first, second]).axes[3]
    assert density.get_title(loc="right") == "not evaluated: second"
    drawn = np.concatenate([patch.get_data().values for patch in density.patches])
    assert drawn.max() == max(first.density.latents.max(), first.density.never)


def test_nan_in_an_evaluation_is_read(runs):
    path = pathlib.Path(runs[0], "evaluation.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fvu": float("nan")}))
    assert plot.read_run(runs[0]).density is not None


def test_runs_without_evaluation_have_no_histogram(runs):
    density = plot.draw([plot.read_run(runs[1])]).axes[3]
    assert not density.axison
    assert density.get_title(loc="right") == "not evaluated: second"


def test_every_run_has_its_own_style(runs):
    lines = plot.draw([plot.read_run(runs[1])] * 25).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 25


@pytest.mark.slow
def test_the_plot_is_written_to_the_default_file_or_to_out(runs, tmp_path, capsys):
    wanted = {
        (runs[0],): tmp_path / "runs/first/plot.png",
        tuple(runs): tmp_path / "runs/plot.png",
        (*runs, "--out", str(tmp_path / "my.png")): tmp_path / "my.png",
    }
    for arguments, path in wanted.items():
        plot.main(arguments)
        assert capsys.readouterr().out == f"{path}\n"
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width > 1000
    assert not list(tmp_path.rglob("*.part"))


def test_runs_of_the_same_name_are_labeled_with_their_paths(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "old/first")
    folders = [*runs, str(tmp_path / "old/first")]
    named = plot.with_unique_names([plot.read_run(folder) for folder in folders], folders)
    assert [run.name for run in named] == [folders[0], "second", folders[2]]


def test_an_incomplete_line_is_ignored(runs):
    with pathlib.Path(runs[0], "metrics.jsonl").open("a") as file:
        file.write('{"step": 65')
    assert plot.read_run(runs[0]).curves["step"][-1] == 600


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("metrics.jsonl", None, r"metrics\.jsonl cannot be read: .*No such file"),
        ("metrics.jsonl", "", "has no lines"),
        ("metrics.jsonl", '{"step": 5', "has no lines"),
        ("metrics.jsonl", '{"step": 1, "loss": 1, "fvu": 1, "dead_fraction": 0}\n{"st\n', "line 2 is broken"),
        ("metrics.jsonl", '{"step": 1, "loss": 1}\n', "line 1 is broken: KeyError: 'fvu'"),
        ("metrics.jsonl", '{"step": 1, "loss": null, "fvu": 1, "dead_fraction": 0}\n', "line 1 is broken"),
        ("metrics.jsonl", "[1]\n", "line 1 is broken"),
        ("metrics.jsonl", b"\xff\xfe\n", "cannot be read"),
        ("evaluation.json", "{", r"evaluation\.json is broken"),
        ("evaluation.json", "{}", r"evaluation\.json is broken: KeyError: 'density_histogram'"),
        (
            "evaluation.json",
            '{"dead_fraction": 0, "density_histogram": {"log10_edges": [1], "latents": [1]}}',
            "1 edges of 1 bins",
        ),
        (
            "evaluation.json",
            '{"dead_fraction": 0, "density_histogram": {"log10_edges": [NaN, 0], "latents": [1]}}',
            "dead_fraction and density_histogram must be finite",
        ),
        ("evaluation.json", "[" * 100_000, r"evaluation\.json is broken: RecursionError"),
        ("evaluation.json", '{"dead_fraction": 1%s, "density_histogram": 0}' % ("0" * 400), "OverflowError"),
    ],
)
def test_a_broken_file_of_a_run_is_refused_with_the_reason(runs, file, content, match):
    path = pathlib.Path(runs[0], file)
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=match):
        plot.main(runs)


def test_a_missing_package_is_refused(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"needs the package matplotlib; pip install 'revelio_jax\[plot\]'"):
        plot.main(runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: runs"),
        (["no/such/run"], "no/such/run: no such folder"),
        (["RUN", "--size=3"], "unknown flag --size"),
        (["RUN", "--out", "no/such/folder/plot.png"], "--out is no/such/folder/plot.png; it must be a file"),
        (["RUN", "--out", "RUN"], "it must be a file in an existing folder"),
    ],
)
def test_a_wrong_command_ends_with_one_line_and_status_2(runs, arguments, message):
    arguments = [runs[0] if argument == "RUN" else argument for argument in arguments]
    command = [sys.executable, "-m", "revelio_jax.plot", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_plot_does_not_import_jax():
    """Plotting needs matplotlib only, so that runs can be plotted on any machine."""
    code = "import sys; import revelio_jax.plot; assert not {'jax', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
