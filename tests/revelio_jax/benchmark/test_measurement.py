"""Benches, outcomes and their intervals."""

import collections
import dataclasses
import random
import types

import numpy as np
import pytest

from revelio_jax.benchmark import measurement
from revelio_jax.benchmark.bench import Bench, make_bench
from revelio_jax.benchmark.judgment import Judgment
from revelio_jax.benchmark.measurement import FIGURES, Outcome, interval, worst
from revelio_jax.config import SteerConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines.sampling import Samples
from revelio_jax.steering.labels import find_concept, parse_concept, spread

JUDGED = ("style", "category")  # the columns of the miniatures' judge
ROWS = [
    {"prompt": f"{style} {name}", "style": style, "category": category, "name": name}
    for style in ("flat", "noto", "")
    for category, names in {"heart": ("red", "blue"), "face": ("happy", "sad", "angry", "tired")}.items()
    for name in names
]


def test_a_bench_has_the_concept_on_one_side_only_and_spreads_over_the_other_label():
    bench = make_bench(ROWS, "style", "flat", 4, JUDGED)
    assert {row["style"] for row in bench.with_concept} == {"flat"}
    assert {row["style"] for row in bench.without} == {"noto"}  # prompts without a style are left out
    assert collections.Counter(row["category"] for row in bench.with_concept) == {"heart": 2, "face": 2}
    halves = bench.half(0).with_concept + bench.half(1).with_concept
    assert sorted(row["prompt"] for row in halves) == sorted(row["prompt"] for row in bench.with_concept)
    assert bench.other == "category"
    with pytest.raises(InputError, match="style, category"):
        make_bench(ROWS, "name", "red", 4, JUDGED)


def test_spread_returns_every_row_at_most_once():
    rows = spread(ROWS, "category", 100, random.Random(0))
    assert sorted(row["prompt"] for row in rows) == sorted(row["prompt"] for row in ROWS)


def test_concepts_are_named_by_column_and_value():
    assert parse_concept("style=flat", ROWS) == ("style", "flat")
    assert find_concept("heart", ROWS) == ("category", "heart")
    assert find_concept("wooden", ROWS) is None
    for concept, message in {
        "flat": "column=value",
        "color=red": "style, category",
        "style=wooden": "flat, noto",
    }.items():
        with pytest.raises(InputError, match=message):
            parse_concept(concept, ROWS)


def test_the_interval_holds_the_mean_and_shrinks_with_more_prompts():
    rng = np.random.default_rng(0)
    few, many = rng.random(20), rng.random(2000)
    for values in (few, many):
        figures = interval(values)
        assert figures["low"] < figures["mean"] == values.mean() < figures["high"]
    assert interval(many)["high"] - interval(many)["low"] < interval(few)["high"] - interval(few)["low"]


def test_the_score_of_a_strength_is_its_worst_figure():
    plain = Outcome(*(np.full(4, 0.8) for _ in FIGURES))
    steered = Outcome(np.full(4, 0.1), np.full(4, 0.8), np.full(4, 0.4), np.full(4, 0.8))
    assert worst(steered, plain) == pytest.approx(0.5)  # the other prompts lost half of their label
    assert worst(dataclasses.replace(steered, others_label=np.full(4, 0.8)), plain) == pytest.approx(0.9)


def test_images_are_sampled_with_the_settings_of_their_prompts(monkeypatch):
    """The seeds of the flag are added to the seed of each prompt."""
    calls = []

    def sample(_pipe, prompts, seeds, *, guidance, height, width, **_):
        calls.append((prompts, seeds, guidance, height, width))
        return Samples(np.zeros((len(prompts), 8, 8, 3), np.uint8), np.zeros(len(prompts), bool))

    monkeypatch.setattr(measurement, "sample", sample)
    rows = [row | {"sd_seed": str(10 * i), "scale": str(1 + i), "high": "16"} for i, row in enumerate(ROWS[:2])]
    bench = Bench("style", "flat", "category", rows[:1], rows[1:])
    settings = SteerConfig(seed_column="sd_seed", guidance_column="scale", height_column="high", width=8)
    judgment = Judgment({"style": "flat", "category": "heart"}, {})
    judge = types.SimpleNamespace(judge=lambda images: [judgment] * len(images))
    measurement.measure(None, judge, bench, [0, 1], settings)
    first, second = (row["prompt"] for row in rows)
    assert calls == [([first, first, second, second], [0, 1, 10, 11], [1.0, 1.0, 2.0, 2.0], 16, 8)]
