"""Images that a given pipeline's safety checker replaces are named, and left out of every figure."""

import numpy as np
import pytest

from revelio_jax.benchmark import strip
from revelio_jax.benchmark.bench import make_bench
from revelio_jax.benchmark.experiment import Experiment
from revelio_jax.benchmark.judges import load_judge
from revelio_jax.benchmark.measurement import measure
from revelio_jax.config import Config, SteerConfig
from revelio_jax.errors import InputError
from revelio_jax.inputs import prompt_settings
from revelio_jax.pipelines.sampling import sample
from revelio_jax.steering.labels import read_labeled
from tests.helpers import MINIATURES
from tests.helpers.pipelines import similarities, with_safety_checker

STEER = SteerConfig(steps=3, guidance=2.5, height=32, width=32, batch_size=8, rule="contrast")


@pytest.fixture(scope="module")
def bench():
    return make_bench(
        read_labeled(str(MINIATURES / "sd" / "prompts.csv")), "style", "glossy 3d", 3, ("style", "category")
    )


@pytest.fixture(scope="module")
def judge():
    return load_judge(str(MINIATURES / "sd"))


def images_of(pipe, prompts, seeds):
    settings = {"steps": 3, "guidance": 2.5, "height": 32, "width": 32, "batch_size": 8}
    return sample(pipe, prompts, seeds, **settings)


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])  # with one seed, the flagged prompts have no other image
def test_figures_are_means_over_the_other_images(pipe, bench, judge, capsys, seeds):
    rows = bench.with_concept + bench.without
    prompts, all_seeds = [row["prompt"] for row in rows for _ in seeds], seeds * len(rows)
    images = images_of(pipe, prompts, all_seeds).images
    scores = similarities(with_safety_checker(pipe).safety_checker, images / 255)
    threshold = sorted(scores)[-3]
    checked = with_safety_checker(pipe, threshold)
    flagged = np.flatnonzero(np.round(np.array(scores) - threshold, 3) > 0)  # the checker rounds
    assert 0 < len(flagged) < 3
    capsys.readouterr()
    outcome = measure(checked, judge, bench, seeds, STEER)
    out = capsys.readouterr().out
    assert f"the safety checker flagged {len(flagged)} of {len(scores)} images, which are left out" in out
    assert all(f"{prompts[i]!r} with seed {all_seeds[i]}" in out for i in flagged)
    labels = [each.labels for each in judge.judge(images)]
    shares = []
    for i, row in enumerate(rows):
        kept = [j for j in range(i * len(seeds), (i + 1) * len(seeds)) if j not in flagged]
        shares.append(np.mean([labels[j]["style"] == row["style"] for j in kept]) if kept else np.nan)
    first = len(bench.with_concept)
    np.testing.assert_allclose(outcome.concept, shares[:first])
    np.testing.assert_allclose(outcome.others_label, shares[first:])
    assert np.isnan(shares).any() == (len(seeds) == 1)
    for figure, values in (("concept", shares[:first]), ("others_label", shares[first:])):
        assert outcome.mean(figure) == pytest.approx(np.nanmean(values))
        assert outcome.summary()[figure]["mean"] == pytest.approx(np.nanmean(values))


def test_nothing_is_measured_if_all_images_are_flagged(pipe, bench, judge):
    with pytest.raises(InputError, match="flagged all images"):
        measure(with_safety_checker(pipe), judge, bench, [0], STEER)


def test_a_strip_shows_flagged_images_by_name(pipe, make_steerer, tmp_path):
    prompts = ["a flat emoji of cat", "a glossy 3d emoji of red apple"]
    scores = similarities(with_safety_checker(pipe).safety_checker, images_of(pipe, prompts, [3, 3]).images / 255)
    checked = with_safety_checker(pipe, float(np.mean(scores)))
    steerer = make_steerer(checked, "clip.layer.2")
    config = Config(run=str(tmp_path), steer=STEER)
    settings = prompt_settings.read([{"prompt": prompt} for prompt in prompts], STEER)
    experiment = Experiment(config, "red", None, [], prompts, settings, None, steerer, checked, {})
    images = experiment.sample([0.0], seed=3)
    assert [row[0] is None for row in images] == [score > np.mean(scores) for score in scores]
    drawn = strip.draw(images, prompts, [0.0], "title")
    assert drawn.size[1] > 64
    with pytest.raises(InputError, match="flagged all images"):
        strip.draw([[None]], prompts[:1], [0.0], "title")
    assert '"safety_checker": true' in experiment.record("results.json", {}).read_text()
