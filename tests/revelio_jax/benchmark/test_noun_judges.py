"""Judges that are asked for nouns, and the figures of neighbors and of alignment from their answers."""

import json

import numpy as np
import pytest
import torch
import transformers

from revelio_jax.benchmark import judges, neighbors
from revelio_jax.benchmark.images import ImageFolder, Shot
from revelio_jax.benchmark.judges import load_judge
from revelio_jax.benchmark.judgment import NounJudge
from revelio_jax.benchmark.judgments import NounJudgments
from revelio_jax.benchmark.noun_figures import measure_nouns
from revelio_jax.benchmark.tasks import ALIGNMENT, CONCEPT, NEIGHBORS, TaskPrompt
from revelio_jax.errors import InputError
from tests.helpers import MINIATURES
from tests.helpers.tiny_clip import SIDE

SEEDS = 3
NOUNS = [(NEIGHBORS, ("apple",)), (NEIGHBORS, ("pear",)), (ALIGNMENT, ("tree", "dog")), (ALIGNMENT, ("sky",))]


class Scripted:
    """A judge that sees a noun if the first color of an image is at most its length times 20."""

    def __init__(self):
        self.noun_record, self.count = {"name": "scripted"}, 0

    def nouns_visible(self, pixels, nouns):
        self.count += len(pixels)
        return [
            [bool(image[0, 0, 0] <= 20 * len(noun)) for noun in each] for image, each in zip(pixels, nouns, strict=True)
        ]


@pytest.fixture
def shots():
    prompts = [TaskPrompt("hub", "0", CONCEPT, "cat", 7, 2.5, 8, 8)]
    prompts += [
        TaskPrompt("hub", str(i), role, f"photo {i}", 7, 2.5, 8, 8, nouns=nouns)
        for i, (role, nouns) in enumerate(NOUNS)
    ]
    return [Shot(prompt, seed) for prompt in prompts for seed in range(SEEDS)]


@pytest.fixture
def folders(shots, tmp_path):
    """Images of the plain pipeline, of colors 0 to 140, and of a method, 60 brighter; one image is flagged."""
    folders = [ImageFolder(tmp_path / "images", key) for key in ("plain", "method")]
    for folder, added in zip(folders, (0, 60), strict=True):
        for number, shot in enumerate(shots):
            flagged = folder.path.name == "method" and number == SEEDS
            folder.write(shot, np.full((8, 8, 3), 10 * number + added, np.uint8), flagged)
    return folders


def test_figures_are_those_of_the_functions(shots, folders, tmp_path):
    plain, method = folders
    judge = Scripted()
    found = measure_nouns(NounJudgments(tmp_path / "nouns", judge), method, plain, shots, SEEDS)

    def shown(number, noun, added):
        return 10 * number + added <= 20 * len(noun) and not (added and number == SEEDS)

    visible, plainly = (
        np.array([[shown(SEEDS * (1 + i) + s, NOUNS[i][1][0], added) for s in range(SEEDS)] for i in (0, 1)])
        for added in (60, 0)
    )
    assert 0 < visible.sum() < visible.size
    aligned = [[shown(SEEDS * (1 + i) + s, noun, 60) for s in range(SEEDS) for noun in NOUNS[i][1]] for i in (2, 3)]
    assert found["intervals"] == {
        "pinpointness": neighbors.pinpointness(visible),
        "survival": neighbors.survival(visible, plainly),
        "selective_alignment": neighbors.selective_alignment(aligned),
    }
    assert found["harms"] == neighbors.harms(["apple", "pear"], visible, plainly)
    count = judge.count
    again = measure_nouns(NounJudgments(tmp_path / "nouns", judge), method, plain, shots, SEEDS)
    assert (again, judge.count) == (found, count)  # each image is asked about once


def test_without_a_neighbor_in_the_plain_images_there_is_no_survival(shots, folders, tmp_path):
    judge = Scripted()
    judge.nouns_visible = lambda _, nouns: [[False] * len(each) for each in nouns]
    found = measure_nouns(NounJudgments(tmp_path, judge), *folders, shots, SEEDS)
    assert set(found["intervals"]) == {"pinpointness", "selective_alignment"}
    assert found["intervals"]["pinpointness"]["mean"] == 0


@torch.no_grad()
def test_clip_sees_a_noun_that_is_likelier_than_something(clip_folder):
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    pixels = np.random.default_rng(1).integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)
    settings = {"model": str(clip_folder), "classes": ["a", "b"], "device": "cpu", "template": "a flat {}"}
    judge = load_judge("clip", json.dumps(settings))
    assert isinstance(judge, NounJudge)
    images = judge._images.embed_images(pixels)
    names = ("cat", "red apple", "something")
    ids = [tokenizer(f"a flat {name}", return_tensors="pt").input_ids for name in names]
    texts = torch.cat([model.text_projection(model.text_model(each).pooler_output) for each in ids])
    cosines = (images @ torch.nn.functional.normalize(texts, dim=1).T).numpy()
    wanted = cosines[:, :2] > cosines[:, 2:]
    assert 0 < wanted.mean() < 1
    answers = judge.nouns_visible(pixels, [names[:2]] * 40)
    clear = np.abs(cosines[:, :2] - cosines[:, 2:]) > 1e-4
    np.testing.assert_array_equal(np.array(answers)[clear], wanted[clear])
    assert judge.nouns_visible(pixels[:2], [(), ("cat",)]) == [[], [answers[1][0]]]
    assert judge.noun_record["absent"] == "a flat something"
    other = load_judge("clip", json.dumps(settings | {"absent": "a photo"}))
    assert other.noun_record["absent"] == "a photo"
    assert other.record == judge.record  # the labels of images are the same


def test_a_vlm_is_asked_one_question_about_each_noun(server):
    server.answer = lambda request, _: "Yes." if "pear" in request.text else "no"
    settings = {"endpoint": server.url, "model": "m", "question": "Is it nude?", "noun_question": "Do you see {}?"}
    judge = load_judge("vlm", json.dumps(settings))
    answers = judge.nouns_visible(np.zeros((2, 8, 8, 3), np.uint8), [("pear", "cat"), ("pear",)])
    assert answers == [[True, False], [True]]
    texts = sorted(request.text for request in server.requests)
    assert texts == [f"Do you see {noun}? Answer yes or no, and nothing else." for noun in ("cat", "pear", "pear")]
    with pytest.raises(InputError, match=r"must contain \{\}, the noun"):
        load_judge("vlm", json.dumps(settings | {"noun_question": "Do you see it?"}))


@pytest.mark.parametrize("judge", [str(MINIATURES / "sd"), "nudenet", "q16", "open_nsfw", "module:function", None])
def test_other_judges_cannot_be_asked_for_nouns(judge):
    with pytest.raises(InputError, match=r"need a judge that can be asked for any noun: clip, vlm"):
        judges.check_noun_judge(judge)
    judges.check_noun_judge("clip")
    judges.check_noun_judge("vlm")
