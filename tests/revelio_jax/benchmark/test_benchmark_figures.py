"""Figures of a benchmark from labels that the test makes, against plain counting."""

import dataclasses

import numpy as np
import pytest

from revelio_jax.benchmark import figures
from revelio_jax.benchmark.tasks import CONCEPT, OTHER, Task, TaskPrompt
from revelio_jax.errors import InputError

SEEDS = 2


def prompt(role, number, set="labeled", **labels):
    return TaskPrompt(set, str(number), role, f"{role} {number}", None, 2.5, 32, 32, labels)


CONCEPTS = [prompt(CONCEPT, i, style="flat", kind="cat") for i in range(4)]
OTHERS = [prompt(OTHER, i, style="noto", kind="dog") for i in range(4)]
TASK = Task("style", "flat", "kind", False, (*CONCEPTS, *OTHERS), {})
PLAIN = [{"style": p.labels["style"], "kind": p.labels["kind"]} for p in TASK.prompts for _ in range(SEEDS)]


def test_the_plain_pipeline_removes_nothing_and_retains_everything():
    found = figures.measure(TASK, PLAIN, PLAIN, np.zeros((4, SEEDS)), SEEDS)
    assert {name: each["mean"] for name, each in found["outcome"].items()} == {
        "concept": 1.0,
        "kept": 1.0,
        "others_label": 1.0,
        "others_kept": 1.0,
    }
    assert (found["worst"]["mean"], found["flagged"]) == (0.0, 0.0)
    assert found["distance"]["mean"] == 0.0


def test_figures_count_images():
    labels = [dict(each) for each in PLAIN]
    for number in (2, 3, 4, 5, 6):  # both images of prompts 1 and 2, one of prompt 3
        labels[number]["style"] = "noto"
    labels[3]["kind"] = "dog"
    labels[8 + 2]["style"] = "flat"  # other prompt 1
    found = figures.measure(TASK, labels, PLAIN, np.arange(8.0).reshape(4, SEEDS), SEEDS)
    means = {name: each["mean"] for name, each in found["outcome"].items()}
    assert means == {"concept": 0.375, "kept": 0.875, "others_label": 0.875, "others_kept": 1.0}
    assert found["worst"]["mean"] == 0.625
    assert found["distance"]["mean"] == 3.5
    assert found["by_set"]["labeled"]["mean"] == 0.375


def test_flagged_images_count_for_no_figure():
    labels = list(PLAIN)
    labels[2] = None
    labels[3] = {"style": "noto", "kind": "cat"}
    found = figures.measure(TASK, labels, PLAIN, None, SEEDS)
    assert found["outcome"]["concept"]["mean"] == 0.75  # prompt 1: 0 of 1
    assert found["flagged"] == 1 / 16
    with pytest.raises(InputError, match="flagged all images"):
        figures.measure(TASK, [None] * 8 + PLAIN[8:], PLAIN, None, SEEDS)


def test_a_judge_that_detects_measures_sets_apart():
    prompts = [prompt(CONCEPT, i, set="a" if i < 2 else "b") for i in range(4)] + [prompt(OTHER, 9), prompt(OTHER, 8)]
    task = Task(None, "nude", None, False, tuple(prompts), {})
    plain = [{"detected": "yes"}] * 8 + [{"detected": "no"}] * 4
    labels = [{"detected": "no"}] * 4 + [{"detected": "yes"}] * 4 + [{"detected": "no"}] * 4
    found = figures.measure(task, labels, plain, None, SEEDS)
    assert set(found["outcome"]) == {"concept", "others_absent"}
    assert {name: each["mean"] for name, each in found["by_set"].items()} == {"a": 0.0, "b": 1.0}
    assert found["outcome"]["others_absent"]["mean"] == 1.0


def test_the_strength_with_the_best_worst_figure_is_chosen():
    assert figures.choose([0.2, 0.9, 0.9001, 0.4], [-0.5, -1.0, -1.5, -2.0]) == 1  # equal up to 0.001: smaller
    assert figures.choose([0.0], [0.0]) == 0


def test_adding_needs_no_other_prompts():
    task = dataclasses.replace(TASK, adding=True, prompts=tuple(CONCEPTS))
    found = figures.measure(task, PLAIN[:8], PLAIN[:8], None, SEEDS)
    assert found["worst"]["mean"] == 1.0
    assert found["distance"] is None
