"""Images and judgments of a benchmark on disk: resumed, shared between workers, and judged once."""

import dataclasses
import json

import numpy as np
import pytest

from revelio_jax.benchmark import drawing
from revelio_jax.benchmark.images import ImageFolder, Shot
from revelio_jax.benchmark.judges import load_judge
from revelio_jax.benchmark.judgments import Judgments
from revelio_jax.benchmark.tasks import CONCEPT, OTHER, Task, TaskPrompt
from revelio_jax.benchmark.variants import TaskMethods, parse_method
from revelio_jax.config import Config
from revelio_jax.errors import InputError
from tests.helpers import MINIATURES

LABELED = [
    {"prompt": f"{style} emoji of {name}", "style": style, "category": "x", "name": name}
    for style in ("flat", "noto")
    for name in ("cat", "dog", "red apple", "tiger")
]


@pytest.fixture(scope="module")
def task():
    def prompt(role, number, row):
        return TaskPrompt("labeled", f"{role}-{number}", role, row["prompt"], None, 2.5, 32, 32, row)

    prompts = [prompt(CONCEPT if row["style"] == "flat" else OTHER, i, row) for i, row in enumerate(LABELED)]
    return Task("style", "flat", "category", False, tuple(prompts), {})


@pytest.fixture(scope="module")
def steer():
    return dataclasses.replace(Config().steer, steps=2, guidance=2.5, height=32, width=32, batch_size=3)


@pytest.fixture
def methods(task, steer, miniature, make_steerer):
    pipe = miniature("sd")
    config = dataclasses.replace(Config(), steer=steer)
    steerer = make_steerer(pipe, "clip.layer.2")
    return TaskMethods(task, config, pipe, steerer, LABELED, {"model": "mini"})


@pytest.fixture
def variants(methods):
    texts = ("plain", "steer rule=contrast learned=text", "difference_of_means", "negative_prompt")
    return methods.variants([parse_method(text, (-1.0,)) for text in texts])


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def test_workers_draw_everything_once_and_a_stopped_run_continues(task, steer, methods, variants, tmp_path):
    shots = drawing.shots_of(task, 1)
    whole = tmp_path / "whole"
    assert drawing.draw(methods, variants, shots, whole, steer) == len(variants) * len(shots)
    images = contents(whole)
    assert len(images) == len(variants) * len(shots)
    by_variant = {variant.key: images[f"{variant.key}/{shots[0].file_name}"] for variant in variants}
    assert len(set(by_variant.values())) == len(variants)  # every method changes the image

    parts = tmp_path / "parts"
    for number in (1, 0):  # the first finds the second's share missing, and draws it too
        expected = len(images) if number else 0
        assert drawing.draw(methods, variants, shots, parts, steer, drawing.Worker(number, 2)) == expected
    (first, *_) = parts.rglob("*.png")
    first.unlink()
    assert 0 < drawing.draw(methods, variants, shots, parts, steer) <= steer.batch_size  # the batch of the first
    assert contents(parts) == images
    assert drawing.draw(methods, variants, shots, parts, steer) == 0


def test_a_worker_begins_with_its_share(task, steer, methods, variants, tmp_path, monkeypatch):
    shots = drawing.shots_of(task, 1)
    seen = []
    monkeypatch.setattr(drawing, "_draw", lambda methods, own, folder, steer: seen.append(own) or 0)
    drawing.draw(methods, variants, shots, tmp_path, steer)
    drawing.draw(methods, variants, shots, tmp_path, steer, drawing.Worker(1, 2))
    batches, share, rest = seen
    assert share == batches[1::2]
    assert rest == batches[::-1]


def test_steering_at_strength_zero_is_the_plain_pipeline(task, steer, methods, tmp_path):
    plain, zero = methods.variants(
        [parse_method(text, (0.0,)) for text in ("plain", "steer rule=contrast learned=text")]
    )
    shots = drawing.shots_of(task, 1)[:2]
    drawing.draw(methods, [plain, zero], shots, tmp_path, steer)
    for shot in shots:
        one, other = (ImageFolder(tmp_path, each.key).read(shot)[0] for each in (plain, zero))
        np.testing.assert_array_equal(one, other)


def test_keys_depend_on_what_changes_images(task, steer, miniature, make_steerer):
    pipe = miniature("sd")

    def key(text, task=task, identity=None, labeled=LABELED, strength=-1.0):
        config = dataclasses.replace(Config(), steer=steer)
        made = TaskMethods(task, config, pipe, None, labeled, identity or {"model": "mini", "sae": "a"})
        return made.variants([parse_method(text, (strength,))])[0].key

    swap = key("steer rule=swap")
    others = [
        key("steer rule=gated"),
        key("random_direction rule=swap"),
        key("steer rule=swap", strength=-2.0),
        key("steer rule=swap", identity={"model": "mini", "sae": "b"}),
        key("steer rule=swap", identity={"model": "other", "sae": "a"}),
        key("steer rule=swap", labeled=LABELED[:-1]),
        key("steer rule=swap", task=dataclasses.replace(task, value="noto")),
        key("steer rule=swap", task=dataclasses.replace(task, prompts=task.prompts[1:])),
    ]
    assert len({swap, *others}) == len(others) + 1
    assert swap == key("steer rule=swap")
    # Images of other methods do not depend on the SAE, those of the plain pipeline also not on the concept.
    assert key("sld") == key("sld", identity={"model": "mini", "sae": "b"})
    assert key("sld") != key("sld", task=dataclasses.replace(task, value="noto"))
    assert key("plain") == key("plain", task=dataclasses.replace(task, value="noto"))


def test_only_methods_that_can_add_are_in_a_task_of_adding(task, methods):
    specs = [parse_method(text, (-1.0, -0.5)) for text in ("plain", "sld", "steer", "difference_of_means")]
    adding = TaskMethods(dataclasses.replace(task, adding=True), Config(), None, None, LABELED, {})
    assert [(each.method.name, each.strength) for each in adding.variants(specs)] == [
        ("plain", 0.0),
        ("steer", 1.0),
        ("steer", 0.5),
        ("difference_of_means", 1.0),
        ("difference_of_means", 0.5),
    ]


def test_methods_do_not_learn_from_prompts_that_report(methods, task):
    with_concept, without = methods._examples
    assert with_concept
    assert without
    assert not {prompt.prompt for prompt in task.reported.prompts} & {*with_concept, *without}


class Counting:
    """A judge that counts images."""

    def __init__(self):
        self._judge, self.count = load_judge(str(MINIATURES / "sd")), 0
        self.columns, self.record = self._judge.columns, self._judge.record

    def judge(self, pixels):
        self.count += len(pixels)
        return self._judge.judge(pixels)


def test_each_image_is_judged_once_and_a_torn_line_again(task, tmp_path):
    shots = drawing.shots_of(task, 2)
    images = ImageFolder(tmp_path / "images", "k")
    rng = np.random.default_rng(0)
    for number, shot in enumerate(shots):
        images.write(shot, rng.integers(0, 256, (32, 32, 3), np.uint8), flagged=number == 3)
    judge = Counting()
    labels = Judgments(tmp_path, judge).labels(images, shots)
    assert judge.count == len(shots) - 1
    assert labels[3] is None
    assert [each is None for each in labels].count(True) == 1
    assert Judgments(tmp_path, judge).labels(images, shots) == labels
    assert judge.count == len(shots) - 1
    (file,) = tmp_path.glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-9])
    assert Judgments(tmp_path, judge).labels(images, shots) == labels
    assert judge.count == 2 * (len(shots) - 1)
    file.write_text(json.dumps({"variant": "k", "labels": {}}) + "\n")  # no checksum
    assert Judgments(tmp_path, judge).labels(images, shots) == labels


def test_a_damaged_image_is_reported(task, tmp_path):
    shot = Shot(task.prompts[0], 0)
    images = ImageFolder(tmp_path, "k")
    images.write(shot, np.zeros((8, 8, 3), np.uint8), False)
    (path,) = tmp_path.rglob("*.png")
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(InputError, match="is not a readable image; delete it"):
        images.read(shot)
