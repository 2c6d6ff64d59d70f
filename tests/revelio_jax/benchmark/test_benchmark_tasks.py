"""The prompts of a benchmark: labeled ones, and prompt sets with their roles."""

import dataclasses

import pytest

from revelio_jax.benchmark.tasks import ALIGNMENT, CONCEPT, NEIGHBORS, OTHER, ROLES, make_tasks, read_sets
from revelio_jax.config import Config
from revelio_jax.errors import InputError

LABELED = [
    {"prompt": f"{style} {category} {number}", "style": style, "category": category}
    for style in ("flat", "noto", "")
    for category in ("cat", "dog")
    for number in range(6)
]
JUDGED = ("style", "category")


@pytest.fixture
def i2p(tmp_path):
    path = tmp_path / "i2p.csv"
    head = "prompt,categories,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height\n"
    rows = [f'text {i},"{"hate" if i % 2 else "hate, violence"}",{i + 5},7,512,768\n' for i in range(6)]
    path.write_text(head + "".join(rows))
    return path


def config(*sets, **changes):
    base = Config()
    settings = dataclasses.replace(base.benchmark, prompt_sets=tuple(map(str, sets)), prompts=8, **changes)
    return settings, dataclasses.replace(base.steer, width=32, height=32)


def tasks_of(concept, *sets, labeled=LABELED, judged=JUDGED, **changes):
    settings, steer = config(*sets, **changes)
    return make_tasks(concept, labeled, read_sets(settings, steer), settings, steer, judged)


def test_a_label_is_removed_and_added():
    removal, addition = tasks_of("style=flat")
    assert [(task.name, task.adding, task.other) for task in (removal, addition)] == [
        ("style=flat", False, "category"),
        ("style=flat", True, "category"),
    ]
    assert {prompt.labels["style"] for prompt in removal.of_role(CONCEPT)} == {"flat"}
    assert {prompt.labels["style"] for prompt in removal.of_role(OTHER)} == {"noto"}
    assert all("style" not in prompt.labels for prompt in addition.prompts)
    assert not addition.of_role(OTHER)
    assert len(tasks_of("style=flat", add=False)) == 1


def test_every_second_prompt_of_a_role_reports():
    (task,) = tasks_of("style=flat", add=False)
    for role in (CONCEPT, OTHER):
        assert task.reported.of_role(role) == task.of_role(role)[1::2]
        assert task.choosing.of_role(role) == task.of_role(role)[::2]
    many = dataclasses.replace(task, prompts=tuple(task.prompts[0] for _ in range(200)))
    assert (len(many.choosing.prompts), len(many.reported.prompts)) == (80, 120)
    assert sorted(prompt.id for half in (task.choosing, task.reported) for prompt in half.prompts) == sorted(
        prompt.id for prompt in task.prompts
    )


def test_a_prompt_set_brings_its_own_settings_and_category(i2p):
    (task,) = tasks_of("hate", f"{i2p} category=violence", labeled=[], judged=("detected",))
    assert [prompt.prompt for prompt in task.prompts] == ["text 0", "text 2", "text 4"]
    first = task.prompts[0]
    assert (first.seed, first.guidance, first.height, first.width, first.role) == (5, 7.0, 768, 512, CONCEPT)
    assert task.sets["i2p:violence"]["layout"] == "i2p"
    assert (
        task.sets["i2p:violence"]["fingerprint"]
        == tasks_of("hate", i2p, labeled=[], judged=("detected",))[0].sets["i2p"]["fingerprint"]
    )


def test_roles_order_prompts_and_n_draws_some(i2p):
    (task,) = tasks_of("style=flat", f"{i2p} role=other n=4", add=False)
    roles = [prompt.role for prompt in task.prompts]
    assert roles == sorted(roles)  # concept first
    assert sum(prompt.set == "i2p" for prompt in task.prompts) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("role=benign", "allowed: concept, other, neighbors, alignment"),
        ("role=neighbors", "prompt 0 has 0 nouns; each prompt needs exactly one noun"),
        ("role=alignment", "prompt 0 has 0 nouns; each prompt needs at least one noun"),
        ("rolle=other", "did you mean role"),
        ("n=0", "at least 1"),
        ("layout=i3p", "unknown layout 'i3p'"),
        ("category=love", "unknown category 'love'"),
    ],
)
def test_a_wrong_setting_of_a_prompt_set_is_refused(i2p, settings, message):
    with pytest.raises(InputError, match=message):
        read_sets(*config(f"{i2p} {settings}"))


def test_the_layouts_of_hub_have_their_roles(tmp_path):
    for folder in ("pinpoint_ness", "selective_alignment"):
        (tmp_path / folder).mkdir()
    pinpoint, alignment = tmp_path / "pinpoint_ness" / "cat.csv", tmp_path / "selective_alignment" / "cat.csv"
    pinpoint.write_text("noun,similarity\ntiger,0.9\nlion,0.8\n")
    alignment.write_text('prompt,nouns,index\na cat on a tree,"tree, sky",0\na cat and a dog,dog,1\n')
    (task,) = tasks_of("style=flat", alignment, f"{pinpoint} n=2", add=False)
    assert set(task.sets) == {"labeled", "cat:neighbors", "cat:alignment"}
    roles = [prompt.role for prompt in task.prompts]
    assert roles == sorted(roles, key=ROLES.index)
    assert {prompt.prompt: prompt.nouns for prompt in task.of_role(NEIGHBORS)} == {
        "a photo of tiger": ("tiger",),
        "a photo of lion": ("lion",),
    }
    for role in (NEIGHBORS, ALIGNMENT):  # all of them report
        assert task.reported.of_role(role) == task.of_role(role)
        assert not task.choosing.of_role(role)
    assert [prompt.nouns for prompt in task.of_role(ALIGNMENT)] == [("tree", "sky"), ("dog",)]
    with pytest.raises(InputError, match="prompt 0 has 2 nouns; each prompt needs exactly one noun"):
        tasks_of("style=flat", f"{alignment} role=neighbors")
    (tmp_path / "own.csv").write_text("prompt,nouns\na red fox,fox\n")
    (own,) = tasks_of("style=flat", f"{tmp_path / 'own.csv'} layout=labeled role=neighbors", add=False)
    assert [(prompt.prompt, prompt.nouns) for prompt in own.of_role(NEIGHBORS)] == [("a red fox", ("fox",))]
    as_other, _ = tasks_of("style=flat", f"{pinpoint} role=other")
    assert not any(prompt.nouns for prompt in as_other.prompts)


def test_two_sets_of_one_name_are_refused(i2p):
    with pytest.raises(InputError, match="two prompt sets called 'i2p'"):
        read_sets(*config(i2p, i2p))


def test_a_concept_that_the_judge_cannot_measure_is_refused(i2p):
    with pytest.raises(InputError, match="predicts only style, category"):
        tasks_of("wood", i2p)
    with pytest.raises(InputError, match="there are no prompts with it"):
        tasks_of("wood", labeled=[], judged=("detected",))


def test_phrases_are_separated_by_commas(i2p):
    (task,) = tasks_of("naked, nude", i2p, labeled=[], judged=("detected",))
    assert task.phrases == ["naked", "nude"]
