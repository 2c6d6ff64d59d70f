"""Tags from a server that computes its answers from the images and texts of the requests."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from revelio_jax.errors import InputError
from revelio_jax.interpret.latents import results
from revelio_jax.interpret.latents.interpretation import interpret
from revelio_jax.interpret.tags import answers, command, evidence, questions
from tests.helpers import ROOT
from tests.helpers.edits import edit_sealed
from tests.revelio_jax.interpret.conftest import AFTER_A, HEART, NOISE, PLANTED

UNSEEN = 2  # a latent of `image_config` that fires on a style, which the images do not show


def color(pixels: np.ndarray) -> str:
    red, green, _ = pixels.reshape(-1, 3).astype(float).mean(0)
    return "red" if red > green + 60 else "gray"


def sees(request, _number) -> str:
    """Answer from the pixels: the color of the left panel where the middle panel is marked."""
    parts = [np.asarray(image) for image in request.images]
    if "label:" in request.text.lower():
        label = re.search('Label: "(.*)"', request.text)[1]
        corner = parts[0][: len(parts[0]) // 2, : parts[0].shape[1] // 2]
        return "Yes." if color(corner) == label else "No."
    if "one letter" in request.text:
        return re.search("([A-H]). a color", request.text)[1]
    hot = []
    for part in parts:
        side = part.shape[0]
        heat = part[:, side + 8 : 2 * side + 8].astype(int)
        hot.append(part[:, :side][heat[..., 0] - heat[..., 2] > 100])
    return f'Label: "{color(np.concatenate(hot))}"'


def reads(request, _number) -> str:
    """Answer from the text: the word that is most often between stars."""
    assert not request.images
    if 'Label: "' in request.text:
        label, text = re.search('Label: "(.*)"\nText: "(.*)"', request.text).groups()
        return "yes" if label in text.split() else "no"
    if "one letter" in request.text:
        return "Answer: " + re.search("([A-H]). one particular word", request.text)[1]
    words = re.findall(r"\*\*(\w+)\*\*", request.text.split("examples only")[1])
    return max(sorted(set(words)), key=words.count)


@pytest.fixture(scope="session")
def image_run(tmp_path_factory, image_config, with_fields):
    """A copy of ``image_config`` whose latents are interpreted."""
    run = tmp_path_factory.mktemp("runs") / "seen"
    shutil.copytree(pathlib.Path(image_config.run, "export"), run / "export")
    config = with_fields(image_config, run=str(run))
    interpret(config)
    return config


@pytest.fixture(scope="session")
def text_run(text_config):
    interpret(text_config)
    return text_config


@pytest.fixture
def with_server(tmp_path, with_fields, server):
    """A function that copies a run and returns its config, with the server as its endpoint."""

    def change(config, answer, **fields):
        run = tmp_path / "run"
        shutil.copytree(config.run, run)
        server.answer = answer
        fields = {"endpoint": server.url, "model": "sees", "parallel": 2} | fields
        return with_fields(config, run=str(run), tags=fields)

    return change


def rows_of(config) -> dict[int, dict]:
    table = results.load(results.folder_of(config.run)).tags()
    assert table.schema == command.SCHEMA
    return {row["latent"]: row for row in table.to_pylist()}


def test_predictive_labels_score_high_and_others_near_chance(image_run, with_server, server):
    config = with_server(image_run, sees)
    made = command.tag(config)
    rows = rows_of(config)
    assert sorted(rows) == [PLANTED, NOISE, UNSEEN]  # the others never fire
    planted, unseen, noise = rows[PLANTED], rows[UNSEEN], rows[NOISE]
    assert (planted["label"], planted["granularity"], planted["model"]) == ("red", "color", "sees")
    assert planted["score"] == planted["score_high"] == 1.0
    assert planted["held_out"] >= 2 * evidence.FEWEST
    assert 0.5 < planted["score_low"] < 1
    assert unseen["label"] == "gray"
    assert 0.25 <= unseen["score"] <= 0.75
    assert unseen["score_low"] < 0.5 < unseen["score_high"]
    assert noise["label"] == "gray"  # it fires on every image, so no silent ones are left to test a label
    assert noise["score"] is None
    assert noise["held_out"] == 0
    assert made.answers.requested == len(server.requests)
    output = command.summary(made)
    assert "granularity: color 100%" in output
    assert "labels without a score (too few samples or clear answers): 1" in output


def test_requests_follow_the_chat_completions_protocol(image_run, with_server, server, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret-words")
    config = with_server(image_run, sees, key="A_KEY", max_tokens=77, images=3)
    command.tag(config, [PLANTED])
    label = next(request for request in server.requests if "eight words" in request.text)
    assert label.path == "/v1/chat/completions"
    assert label.headers["authorization"] == "Bearer secret-words"
    assert label.headers["content-type"] == "application/json"
    assert set(label.body) == {"model", "messages", "max_tokens", "temperature"}
    assert (label.body["model"], label.body["max_tokens"], label.body["temperature"]) == ("sees", 77, 0)
    [message] = label.body["messages"]
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image_url"] * 3 + ["text"]
    assert all(image.size == (3 * 224 + 16, 224) for image in label.images)
    tried = [request for request in server.requests if "Label:" in request.text]
    assert all(len(request.images) == 1 for request in tried)
    assert all(request.images[0].size == (224, 224) for request in tried)  # no heat map gives the answer away


def test_the_key_is_never_written_or_printed(image_run, with_server, server, monkeypatch, capsys):
    monkeypatch.setenv("A_KEY", "secret-words")
    config = with_server(image_run, sees, key="A_KEY")
    command.tag(config, [PLANTED])
    server.answer = lambda *_: (401, b'{"error": {"message": "wrong key: secret-words"}}', {})
    with pytest.raises(InputError) as error:
        command.tag(config, [UNSEEN])
    assert "wrong key: [key]" in str(error.value)
    files = [path for path in pathlib.Path(config.run).rglob("*") if path.is_file()]
    assert files
    assert not any(b"secret-words" in path.read_bytes() for path in files)
    assert "secret-words" not in "".join(capsys.readouterr())


def test_texts_are_tagged_by_their_words(text_run, with_server):
    config = with_server(text_run, reads, held_out=40)
    command.tag(config)
    rows = rows_of(config)
    assert sorted(rows) == [HEART, AFTER_A]
    assert (rows[HEART]["label"], rows[HEART]["granularity"]) == ("heart", "word")
    assert rows[HEART]["score"] == 1.0
    assert rows[AFTER_A]["score"] < 0.9  # one of many words that follow an "a"


def test_fuzzing_asks_whether_the_marked_words_are_the_right_ones(text_run, with_server, server):
    def marks(request, number):
        if "some words are between" in request.text:
            label, text = re.search('Label: "(.*)"\nText: "(.*)"', request.text).groups()
            return "yes" if f"**{label}**" in text else "no"
        return reads(request, number)

    config = with_server(text_run, marks, held_out=40, scores=("fuzzing",))
    command.tag(config, [HEART])
    row = rows_of(config)[HEART]
    assert row["fuzzing_score"] == row["fuzzing_high"] == 1.0
    assert 0.5 < row["fuzzing_low"] < 1
    assert (row["score"], row["hard_score"], row["held_out"]) == (None, None, 0)
    asked = [request.text for request in server.requests if "some words are between" in request.text]
    wrong = [text for text in asked if "**heart**" not in text]
    assert len(asked) == 12  # the top samples that were not shown
    assert len(wrong) == 6
    assert all(text.count("**") == 4 and "heart" in text.split("Text: ")[1] for text in wrong)


def test_unknown_scores_are_refused(text_run, with_fields):
    with pytest.raises(InputError, match=r"config\.tags\.scores has 'luck'; it must have only: detection, hard, fuzz"):
        with_fields(text_run, tags={"scores": ("detection", "luck")})


def test_silent_samples_of_a_hard_score_fire_a_neighbor(text_run, with_server, server):
    config = with_server(text_run, reads, held_out=40, scores=("detection", "hard"))
    run_results = results.load(results.folder_of(config.run))
    latent_evidence = evidence.open_evidence(run_results, config.extract)
    shown = latent_evidence.top_samples(HEART, 8)
    easy, hard = (latent_evidence.held_out_samples(HEART, shown, 40, hard=hard) for hard in (False, True))
    fires = {
        int(number): fires
        for number, *fires in zip(latent_evidence.random_samples, *latent_evidence.fires, strict=True)
    }
    silent = [sample.shown.sample for sample in hard if not sample.fires]
    assert len(silent) >= evidence.FEWEST
    assert all(fires[number][AFTER_A] and not fires[number][HEART] for number in silent)
    assert not all(fires[sample.shown.sample][AFTER_A] for sample in easy if not sample.fires)
    assert {sample.shown.sample for sample in hard if sample.fires} <= {s.shown.sample for s in easy if s.fires}
    command.tag(config, [HEART])
    row = rows_of(config)[HEART]
    assert row["hard_score"] == row["score"] == 1.0  # prompts with "a" do not contain the label
    assert "mean hard score" in command.summary(command.tag(config, [HEART]))


def test_special_tokens_in_prompts_are_escaped(text_run, with_server, server):
    config = with_server(text_run, reads, images=20, held_out=90)
    command.tag(config, [HEART])
    texts = "".join(request.text for request in server.requests)
    assert "(image>" in texts
    assert "<" not in texts


def test_no_question_is_sent_twice(image_run, with_server, server):
    config = with_server(image_run, sees)
    command.tag(config)
    first, count = rows_of(config), len(server.requests)
    made = command.tag(config)
    assert len(server.requests) == count
    assert made.answers.requested == 0
    assert rows_of(config) == first
    # Writing new results removes the tags but keeps the answers.
    interpret(config, again=True)
    assert results.load(results.folder_of(config.run)).tags() is None
    command.tag(config)
    assert len(server.requests) == count
    assert rows_of(config) == first


def test_answers_of_another_model_are_not_reused(image_run, with_server, with_fields, server):
    config = with_server(image_run, sees)
    command.tag(config, [PLANTED])
    count = len(server.requests)
    command.tag(with_fields(config, tags={"model": "other"}), [PLANTED])
    assert len(server.requests) == 2 * count
    assert rows_of(config)[PLANTED]["model"] == "other"


def test_rows_of_other_latents_are_kept(image_run, with_server):
    config = with_server(image_run, sees)
    command.tag(config, [PLANTED])
    command.tag(config, [UNSEEN])
    assert sorted(rows_of(config)) == [PLANTED, UNSEEN]


def test_unreadable_answers_are_null_and_counted(image_run, with_server):
    config = with_server(image_run, lambda *_: "###")
    made = command.tag(config)
    assert all(row["label"] is row["granularity"] is row["score"] is None for row in rows_of(config).values())
    output = command.summary(made)
    assert "latents without a label: 3" in output
    assert "without a granularity: 3" in output

    assert command.tag(config).answers.requested == 0  # the cache also keeps such answers


def test_unclear_verdicts_are_left_out_of_the_score(image_run, with_server):
    def wavers(request, number):
        return "maybe" if "Label:" in request.text else sees(request, number)

    config = with_server(image_run, wavers)
    made = command.tag(config, [PLANTED])
    row = rows_of(config)[PLANTED]
    assert (row["label"], row["score"], row["held_out"]) == ("red", None, 0)
    assert re.search(r"answers neither yes nor no: \d\d", command.summary(made))


@pytest.mark.parametrize("torn", [b'{"key": "ab', b"\xff\xfe", b"null", b'[1]\n{"key": 3, "answer": 4}'])
def test_a_truncated_cache_line_loses_one_answer(image_run, with_server, server, torn):
    config = with_server(image_run, sees)
    command.tag(config, [PLANTED])
    count, path = len(server.requests), pathlib.Path(config.run, answers.NAME)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + torn)
    command.tag(config, [PLANTED])
    assert len(server.requests) == count + 1
    command.tag(config, [PLANTED])
    assert len(server.requests) == count + 1  # the line after the truncated one is read


def command_line(config, config_file, path, *more):
    module = "revelio_jax.interpret.tags"
    return [sys.executable, "-m", module, "--config", config_file(path / "config.py", config), *more]


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_sends_only_the_missing_questions(image_run, with_server, server, config_file, tmp_path, sign):
    stuck, go_on = threading.Event(), threading.Event()

    def stalls(request, number):
        if number == 9:
            stuck.set()
            go_on.wait(60)
        return sees(request, number)

    config = with_server(image_run, stalls, parallel=1)
    running = subprocess.Popen(
        command_line(config, config_file, tmp_path),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # If the tests run in the background of a shell, they ignore SIGINT, and child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert stuck.wait(60)
    running.send_signal(sign)
    output = running.communicate(timeout=60)[1]
    go_on.set()
    assert running.returncode == (-signal.SIGKILL if sign == signal.SIGKILL else 130)
    if sign == signal.SIGINT:
        assert output.splitlines()[-1] == "stopped by Ctrl-C"
    assert len(server.requests) == 10
    server.answer = sees
    whole = command.tag(config)
    assert whole.answers.reused >= 9
    bodies = [json.dumps(request.body) for request in server.requests]
    assert len(bodies) - len(set(bodies)) == 1  # the question that was being answered
    assert len(bodies) == 10 + whole.answers.requested


def test_more_random_latents_include_fewer(image_run):
    run_results = results.load(results.folder_of(image_run.run))
    drawn = [evidence.random_latents(run_results, count) for count in (1, 2, 3, None)]
    assert [len(one) for one in drawn] == [1, 2, 3, 3]
    assert set(drawn[0]) < set(drawn[1]) < set(drawn[2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "config.tags.model is not set"),
        ({"key": "NOT_SET_ANYWHERE"}, "key names an environment variable that is empty or not set"),
        ({"endpoint": "", "model": "no/such/model/at/all"}, "config.tags.model is 'no/such"),
        ({"endpoint": "http://127.0.0.1:9/v1"}, "endpoint is http://127.0.0.1:9/v1: no connection"),
    ],
)
def test_wrong_settings_are_one_line_and_write_nothing(image_run, with_server, fields, message):
    config = with_server(image_run, sees, **fields)
    before = sorted(pathlib.Path(config.run).rglob("*"))
    with pytest.raises(InputError, match=re.escape(message)) as error:
        command.tag(config)
    assert "\n" not in str(error.value)
    assert sorted(pathlib.Path(config.run).rglob("*")) == before


@pytest.mark.slow
def test_the_command_reports_wrong_flags(image_run, with_server, config_file, tmp_path):
    config = with_server(image_run, sees)

    def run(*more):
        ran = subprocess.run(
            command_line(config, config_file, tmp_path, *more), cwd=ROOT, capture_output=True, text=True
        )
        return ran.returncode, ran.stderr.strip()

    for wrong in ("3,six", "", "3,,4"):  # an empty shell variable must not select all latents
        assert run(f"--latents={wrong}") == (
            2,
            f"error: --latents is {wrong!r}; it must be numbers separated by commas, for example 3,17",
        )
    code, output = run("--config.tags.key=sk-very-secret")
    assert code == 2
    assert "secret" not in output
    assert "is not the name of an environment variable" in output


def test_latents_out_of_range_are_refused(image_run, with_server):
    config = with_server(image_run, sees)
    with pytest.raises(InputError, match=r"--latents: latent 6 is out of range; .* has latents 0-5"):
        command.tag(config, [6])


def test_a_store_without_images_is_refused(image_run, with_server, tmp_path):
    config = with_server(image_run, sees)
    store = tmp_path / "store"
    shutil.copytree(config.extract.store, store)
    edit_sealed(store / "manifest.json", lambda manifest: manifest["extract"].update(save_images=False))
    summary = pathlib.Path(config.run, "latents", "summary.json")
    edit_sealed(summary, lambda facts: facts["store"].update(location=str(store)))
    with pytest.raises(InputError, match="no images"):
        command.tag(config)


def test_the_score_is_balanced_accuracy():
    fires, silent = [(True, True)] * 9 + [(True, False)], [(False, True)] * 2 + [(False, False)] * 2
    mean, low, high = command.score(fires + silent)
    assert mean == pytest.approx((0.9 + 0.5) / 2)
    assert 0.4 < low < mean < high < 0.9
    assert command.score(fires + silent[:3]) == (None, None, None)
    assert command.score([(True, True)] * 10 + [(False, True)] * 10)[0] == 0.5  # always answering yes scores at chance


def test_the_order_of_the_choices_differs_by_latent():
    orders = {tuple(questions.lettered_levels("image", latent).values()) for latent in range(20)}
    assert len(orders) > 10
    assert all(order[-1] == questions.NONE for order in orders)
