"""revelio benchmark from its command line: a dry run, workers, the files it writes, and a second call."""

import json
import shutil

import pytest
from safetensors.torch import save_file

from revelio_jax.benchmark import command
from revelio_jax.errors import InputError
from tests.helpers import ROOT


@pytest.fixture
def run(tmp_path, tensors, config):
    export = tmp_path / "run" / "export"
    export.mkdir(parents=True)
    save_file(tensors, export / "sae_weights.safetensors")
    (export / "cfg.json").write_text(json.dumps(config))
    return tmp_path / "run"


@pytest.fixture
def benchmark(run, monkeypatch, tmp_path):
    """A function that runs the command on four prompts a side with few steps."""
    monkeypatch.chdir(ROOT)
    rows = ["prompt,style,category"]
    rows += [f"{style} emoji of {name},{style},{kind}" for style in ("flat", "noto") for name, kind in OBJECTS]
    (tmp_path / "prompts.csv").write_text("\n".join(rows) + "\n")

    def call(*flags):
        settings = {"steer.prompts": tmp_path / "prompts.csv", "steer.steps": 2, "run": run}
        settings |= {"benchmark.prompts": 4, "benchmark.seeds": 1, "benchmark.repetitions": 1}
        settings |= {"benchmark.strengths": "-1,-2", "benchmark.methods": "steer rule=gated,difference_of_means"}
        fields = [f"--config.{name}={value}" for name, value in settings.items()]
        command.main(["--config=mini_sd", "--concept=style=flat", *fields, *flags])
        return run / "benchmark"

    return call


@pytest.fixture
def with_nouns(benchmark, clip_folder, tmp_path):
    """A function that runs the command with a tiny CLIP as judge, files of HUB, and figures of quality."""
    (tmp_path / "pinpoint.csv").write_text("noun,similarity\nred apple,0.9\ncat,0.8\n")
    (tmp_path / "alignment.csv").write_text('prompt,nouns,index\na flat cat,cat,0\na flat pear,"pear, cat",1\n')
    settings = {"model": str(clip_folder), "classes": ["flat", "noto"], "column": "style", "device": "cpu"}
    settings["template"] = "a {} emoji"

    def call(*flags):
        fields = {"benchmark.prompt_sets": f"{tmp_path / 'pinpoint.csv'},{tmp_path / 'alignment.csv'}"}
        fields |= {"benchmark.quality": f"clip model={clip_folder} device=cpu,frechet model={clip_folder} device=cpu"}
        fields |= {"benchmark.methods": "negative_prompt", "benchmark.seeds": 7, "benchmark.repetitions": 0}
        fields |= {"steer.judge": "clip", "steer.judge_settings": json.dumps(settings)}
        return benchmark(*(f"--config.{name}={value}" for name, value in fields.items()), *flags)

    return call


@pytest.mark.slow
def test_figures_of_quality_and_of_nouns_are_apart_from_removal(with_nouns):
    folder = with_nouns()
    record = json.loads((folder / "results.json").read_text())
    (task,) = record["tasks"]
    assert task["prompts"] == {"concept": 2, "other": 2, "neighbors": 2, "alignment": 2}
    plain, method = task["rows"]
    assert set(plain["quality"]) == set(record["quality"])
    assert plain["quality"]["Fréchet distance (clip) to plain"]["mean"] == pytest.approx(0, abs=1e-6)
    assert method["quality"]["Fréchet distance (clip) to plain"]["images"] == 14
    assert plain["quality"]["CLIP cosine to plain"]["mean"] == pytest.approx(1)
    assert method["quality"]["CLIP cosine to plain"]["mean"] < 1
    assert method["quality"]["CLIP score"]["images"] == 14
    assert {harm["neighbor"] for harm in method["nouns"]["harms"]} == {"red apple", "cat"}
    assert "selective_alignment" in method["nouns"]["intervals"]
    assert record["noun_judge"]["absent"] == "a something emoji"
    assert all(network["weights"] for network in record["quality"].values())
    assert {path.name for path in folder.iterdir()} >= {"features", "nouns"}
    assert "quality and retention" in (folder / "results.md").read_text()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("steer.judge=extract/miniature/sd", "need a judge that can be asked for any noun: clip, vlm"),
        ("benchmark.quality=fid features=x.safetensors", "must be a .safetensors file"),
        ("benchmark.seeds=6", "more images than its 12 features; the prompts with the role other have 12 images"),
    ],
)
def test_figures_that_cannot_be_measured_are_refused_before_anything_is_drawn(
    with_nouns, run, flag, message, monkeypatch
):
    monkeypatch.setattr(command, "load_pipeline", None)
    with pytest.raises(InputError, match=message):
        with_nouns(f"--config.{flag}")
    assert not (run / "benchmark").exists()


OBJECTS = [("cat", "animal-mammal"), ("red apple", "food-fruit"), ("tiger", "animal-mammal"), ("pear", "food-fruit")]


def test_a_dry_run_prints_the_cost_and_writes_nothing(benchmark, run, capsys):
    shutil.rmtree(run)
    benchmark("--dry_run", "--seconds=90")
    printed = capsys.readouterr().out
    assert "style=flat, removed: 8 prompts, 4 images per method and 4 per strength to choose from" in printed
    assert "in all: 32 images, 0.8 hours at 90 s per plain image, 0.0 GB on disk" in printed  # 3 x 4 and 5 x 4
    assert not run.exists()


@pytest.mark.slow
def test_the_command_writes_results_that_a_second_call_repeats(benchmark, run, capsys):
    benchmark("--worker=1/2")
    assert "worker 1 of 2: all images are drawn" in capsys.readouterr().out
    images = sorted((run / "benchmark" / "images").rglob("*.png"))
    assert len(images) == 32
    folder = benchmark()
    assert sorted((folder / "images").rglob("*.png")) == images
    record = json.loads((folder / "results.json").read_text())
    (task,) = record["tasks"]
    methods = ["plain", *["steer rule=gated"] * 2, *["difference_of_means"] * 2]
    assert [row["method"] for row in task["rows"]] == methods
    assert all(row["choosing"] for row in task["rows"])
    chosen = [row for row in task["rows"] if row["chosen"]]
    assert [row["method"] for row in chosen] == methods[::2]
    assert all(bool(row["figures"]) == row["chosen"] for row in task["rows"])
    assert [row["time"]["evaluations"] for row in chosen] == [[4.0, 0.0]] * 3  # 2 steps, both branches
    assert task["rows"][0]["figures"]["distance"]["mean"] == 0.0
    assert record["scheduler"]["name"]
    assert record["judge"]["weights"]
    page = (folder / "pictures.html").read_text()
    assert page.count("data:image/png") == 3 * 4  # two reported prompts a side
    assert "blurred" in page
    table = (folder / "results.md").read_text()
    assert capsys.readouterr().out.startswith(table)
    assert (folder / "style_flat_removed.png").stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png") if path.parent != folder}
    times = (folder / "times.jsonl").read_bytes()
    benchmark("--unblurred")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "times.jsonl").read_bytes() == times
    assert json.loads((folder / "results.json").read_text())["tasks"] == record["tasks"]
    assert 'class="table blurred' not in (folder / "pictures.html").read_text()
