"""The files of a report: written in one step, from results alone, small and shared by latents."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest

from revelio_jax.config import InterpretConfig
from revelio_jax.errors import EnvironmentFailure, InputError
from revelio_jax.interpret import report
from revelio_jax.interpret.latents import results
from revelio_jax.interpret.report import pages, scripts, thumbnails
from tests.helpers import ROOT, planted


def data(folder, key):
    """Return the value in ``data/KEY.js`` of a report."""
    text = (folder / "data" / f"{key}.js").read_text()
    start = f"put({json.dumps(key)},"
    assert text.startswith(start)
    return json.loads(text[len(start) : -len(");\n")])


def page(folder, latent):
    each = data(folder, "facts")["chunk"]["pages"]
    return data(folder, f"latents/{latent // each}")["pages"][latent % each]


@pytest.fixture
def run(tmp_path, image_store):
    """Results on images that a test may change."""
    return planted.make(tmp_path / "run", image_store, "image", planted.Size())


def test_a_page_has_the_values_of_the_results(image_report):
    run_results = results.load(image_report.parent / "latents")
    row = run_results.latents.slice(2, 1).to_pylist()[0]
    shown = page(image_report, 2)
    assert shown["rows"] == row["rows"]
    assert shown["mean"] == pytest.approx(row["mean"], rel=1e-3)
    assert shown["labels"] == [[1, 0, 0, "cat"]]
    kept = [s for s in run_results.samples.to_pylist() if s["latent"] == 2]
    top = [s for s in kept if s["kind"] == "top"]
    assert [s[0] for s in shown["top"]] == [s["sample"] for s in top]
    assert [s[3] for s in shown["top"]] == pytest.approx([s["value"] for s in top], rel=1e-3)
    assert len(shown["weaker"]) == sum(s["kind"] == "weaker" for s in kept)
    assert [one["stratum"] for one in shown["strata"]] == ["25", "500"]
    assert [s[0] for one in shown["strata"] for s in one["kept"]] == [
        s["sample"] for s in kept if s["kind"] == "stratum"
    ]
    assert shown["histogram"] == run_results.array("histogram")[2].tolist()
    assert [other for other, _ in shown["nearest"]] == run_results.array("nearest")[2].tolist()


def test_a_dead_latent_has_a_page_without_samples(image_report):
    shown = page(image_report, 1)
    assert shown["rows"] == 0
    assert shown["top"] == shown["strata"] == shown["nearest"] == []
    assert "profile" not in shown


def test_the_overview_counts_all_latents(image_report):
    run_results = results.load(image_report.parent / "latents")
    overview = data(image_report, "overview")
    assert overview["numbers"]["firing"] == sum(overview["density"]["counts"]) == run_results.summary["latents"] - 1
    assert sum(n for _, _, n in overview["scatter"][0]["bins"]) == run_results.summary["latents"] - 1
    purity = overview["purity"][0]
    assert [one["name"] for one in purity["runs"]] == ["images", "other"]
    of_25 = run_results.strata.filter(pyarrow.compute.equal(run_results.strata["stratum"], "25"))
    expected = of_25[f"{planted.LABEL}.purity"].drop_null().to_numpy().mean()
    assert purity["runs"][0]["cells"][0][0] == pytest.approx(expected, rel=1e-3)
    assert purity["chance"] == [[0.45, 1.4, 0.8]] * 3
    purest = next(one for one in overview["listed"] if one["by"] == "purity")
    assert purest["latents"][0][0] == 2


def test_a_run_without_strata_has_empty_cells(tmp_path, text_store, config_of):
    ours = planted.make(tmp_path / "a", text_store, "text", planted.Size(), stratum="language")
    other = planted.make(tmp_path / "b", text_store, "text", planted.Size(), stratum="")
    purity = data(report.write(config_of(tmp_path / "a"), ours, [other]), "overview")["purity"][0]
    assert purity["strata"] == ["ar", "en"]
    assert purity["runs"][1]["cells"][:2] == [[None, None, None, 0]] * 2
    assert purity["runs"][1]["cells"][2][0] is not None


def test_chunks_stay_small_with_many_samples(tmp_path, image_store, config_of):
    size = planted.Size(latents=96, top=20, weaker=10, of_stratum=20, neighbors=10, grid=16)
    run_results = planted.make(tmp_path / "run", image_store, "image", size)
    folder = report.write(config_of(tmp_path / "run"), run_results)
    chunks = [path.stat().st_size for path in (folder / "data/latents").iterdir()]
    assert len(chunks) > 1
    assert max(chunks) < 200_000
    assert max(path.stat().st_size for path in (folder / "data/samples").iterdir()) < 3 * 4096


def test_only_shown_samples_have_a_thumbnail(tmp_path, image_store, config_of):
    size = planted.Size(latents=4, top=2, weaker=0, of_stratum=1)
    run_results = planted.make(tmp_path / "run", image_store, "image", size)
    folder = report.write(config_of(tmp_path / "run"), run_results)
    drawn = {int(path.stem) for path in folder.glob("thumbnails/*/*.webp")}
    assert drawn == set(run_results.samples["sample"].to_pylist())
    assert len(drawn) < size.samples


def test_small_images_are_stored_lossless(image_report, image_store):
    drawn = next(image_report.glob("thumbnails/*/*.webp"))
    original = image_store.kvstore.read(f"images/{int(drawn.stem):08d}.png").result().value
    (image_report.parent / "original.png").write_bytes(original)
    with PIL.Image.open(drawn) as small, PIL.Image.open(image_report.parent / "original.png") as png:
        np.testing.assert_array_equal(np.asarray(small.convert("RGB")), np.asarray(png))


def test_thumbnails_are_resized_and_reused(tmp_path, config_of):
    size = planted.Size(latents=20, samples=30, pixels=160)
    store = planted.make_store(tmp_path / "store", "image", size)
    run_results = planted.make(tmp_path / "run", store, "image", size)
    config = config_of(tmp_path / "run", interpret=InterpretConfig(thumbnail=64))
    folder = report.write(config, run_results)
    path = next(folder.glob("thumbnails/*/*.webp"))
    with PIL.Image.open(path) as image:
        assert image.size == (64, 64)
    before = {path.name: path.stat().st_ino for path in folder.glob("thumbnails/*/*.webp")}
    report.write(config, run_results)
    after = {path.name: path.stat().st_ino for path in folder.glob("thumbnails/*/*.webp")}
    assert after == before  # the same files
    report.write(dataclasses.replace(config, interpret=InterpretConfig(thumbnail=48)), run_results)
    with PIL.Image.open(path) as image:
        assert image.size == (48, 48)


def test_a_missing_image_has_no_thumbnail(tmp_path, config_of):
    size = planted.Size(latents=20, samples=30)
    store = planted.make_store(tmp_path / "store", "image", size)
    run_results = planted.make(tmp_path / "run", store, "image", size)
    gone = run_results.samples["sample"][0].as_py()
    os.remove(tmp_path / f"store/images/{gone:08d}.png")
    folder = report.write(config_of(tmp_path / "run"), run_results)
    span = data(folder, "facts")["chunk"]["samples"]
    assert data(folder, f"samples/{gone // span}")[str(gone)][2] is False
    assert not (folder / thumbnails.path_of(gone)).exists()


def test_a_store_without_images_has_no_thumbnails(tmp_path, config_of):
    store = planted.make_store(tmp_path / "store", "image", planted.Size(), images=False)
    run_results = planted.make(tmp_path / "run", store, "image", planted.Size())
    folder = report.write(config_of(tmp_path / "run"), run_results)
    assert data(folder, "facts")["image"] is None
    assert not (folder / "thumbnails").exists()


def test_the_next_report_shows_new_tags(run, config_of):
    config = config_of(run.folder.parent)
    folder = report.write(config, run)
    assert page(folder, 2)["tag"] is None
    row = {"latent": 2, "label": "a cat's ear", "granularity": "part", "score": 0.9, "score_low": 0.8}
    row |= {"score_high": 0.95, "auc": 0.9, "n": 10, "model": "some-model"}
    unread = row | {"latent": 3, "label": None, "granularity": None, "score": None}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, unread]), run.folder / "tags.parquet")
    folder = report.write(config, run)
    assert page(folder, 2)["tag"] == ["a cat's ear", "part", 0.9, 0.8, 0.95, "some-model"]
    assert page(folder, 3)["tag"] is None
    assert data(folder, "rows/0")[2][1] == "a cat's ear"
    assert data(folder, "overview")["numbers"]["tagged"] == 1


def test_a_failed_write_keeps_the_old_report(run, config_of, monkeypatch):
    config = config_of(run.folder.parent)
    folder = report.write(config, run)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pages, "write", full)
    with pytest.raises(EnvironmentFailure, match="report cannot be written: No space left"):
        report.write(config, run)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    report.write(config, run)  # the failed attempt left nothing behind
    assert sorted(path.name for path in run.folder.parent.iterdir()) == ["export", "latents", "report"]


def test_a_different_store_is_refused_before_writing(run, config_of):
    run.summary["store"]["fingerprint"] = "another"
    with pytest.raises(InputError, match="has changed since"):
        report.write(config_of(run.folder.parent), run)
    assert not (run.folder.parent / "report").exists()


def test_neurons_have_their_own_report(tmp_path, text_store, config_of):
    run_results = planted.make(tmp_path / "run", text_store, "text", planted.Size())
    (tmp_path / "run/latents").rename(tmp_path / "run/neurons")
    summary = run_results.summary | {"sae": {"folder": "", "sha256": "neurons", "architecture": "neurons"}}
    neurons = dataclasses.replace(run_results, folder=tmp_path / "run/neurons", summary=summary)
    folder = report.write(config_of(tmp_path / "run"), neurons)
    assert folder == tmp_path / "run/neurons_report"
    assert data(folder, "facts")["name"] == "run, neurons"


def test_every_file_of_the_site_is_used_by_a_page():
    site = report.SITE
    html = "".join(path.read_text() for path in site.glob("*.html"))
    for path in site.iterdir():
        assert path.suffix == ".html" or f'"{path.name}"' in html
    assert "http" not in html.replace("http-equiv", "")


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "revelio_jax.interpret.report", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_the_command_writes_a_comparison(run, config_of, config_file, tmp_path, image_store):
    planted.make(tmp_path / "other", image_store, "image", planted.Size(latents=30))
    config = config_file(tmp_path / "config.py", config_of(run.folder.parent))
    done = command("--config", config, "--compare", tmp_path / "other")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report: {run.folder.parent / 'report/index.html'}\n"
    assert [one["name"] for one in data(run.folder.parent / "report", "facts")["compare"]] == ["other"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config.run=runs/none"], "runs/none/latents has no summary.json"),
        (["--config.run="], "config.run is not set"),
        (["--compare=runs/none"], "runs/none/latents has no summary.json"),
        (["--config.interpret.thumbnail=3"], "config.interpret.thumbnail is 3; it must be at least 16"),
    ],
)
def test_wrong_input_is_one_line(run, config_of, config_file, tmp_path, flags, says):
    config = config_file(tmp_path / "config.py", config_of(run.folder.parent))
    done = command("--config", config, *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (run.folder.parent / "report").exists()


def test_each_script_has_one_call(text_report):
    for path in (text_report / "data").rglob("*.js"):
        key = path.relative_to(text_report / "data").with_suffix("").as_posix()
        text = path.read_text()
        assert text.count("\n") == 1
        assert "<" not in text
        assert text.startswith(f"put({scripts.dumps(key)},")
