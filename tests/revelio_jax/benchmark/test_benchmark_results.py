"""Tables, plots and the page of a benchmark, and the comparison of two results."""

import csv
import io
import json
import re

import numpy as np
import pytest

from revelio_jax.benchmark import frontier, pictures, results, results_comparison
from revelio_jax.benchmark.images import ImageFolder, Shot
from revelio_jax.benchmark.tasks import CONCEPT, TaskPrompt
from revelio_jax.errors import InputError


def interval(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def row(method, strength, concept, chosen=True, time=None):
    outcome = {"concept": interval(concept), "kept": interval(0.75)}
    figures = {"outcome": outcome, "distance": interval(0.125), "by_set": {"labeled": interval(concept)}}
    figures |= {"worst": interval(1 - concept), "retention": interval(0.75)}
    figures |= {"flagged": 0.0}
    found = {"method": method, "strength": strength, "chosen": chosen, "key": f"k{strength}", "time": time}
    found |= {"figures": figures if chosen else None, "choosing": figures if strength else None}
    return found | {"quality": {}, "nouns": None}


def add_quality(rows):
    """Add figures of quality and of neighbors to rows; those of plain are 10 larger."""
    for each in rows:
        added = 10 * (each["method"] == "plain")
        each["quality"] = {"CLIP score": {"mean": 20.5 + added, "low": 20.0, "high": 31.0, "images": 12}}
        each["quality"]["FID"] = {"mean": 18.25 + added, "low": None, "high": None, "images": 24}
        harms = [
            {"neighbor": name, "plain": 1.0, "method": 1 - lost, "harm": lost, "low": 0.0, "high": 1.0}
            for name, lost in (("tiger", 0.75), ("dog", 0.25), ("fox", 0.0), ("ox", 0.0), ("elk", 0.0), ("bee", -0.5))
        ]
        each["nouns"] = {"intervals": {"survival": interval(0.5)}, "harms": harms}


TIME = {"ratio": {"median": 1.5, "low": 1.4, "high": 1.6}, "evaluations": (45.0, 15.0)}


@pytest.fixture
def result():
    rows = [row("plain", 0.0, 0.9), row("steer rule=swap", -1.0, 0.4, chosen=False), row("sld", 0.0, 0.2, time=TIME)]
    rows.append(row("steer rule=swap", -2.0, 0.1))
    sets = {"labeled": {"fingerprint": "abc"}}
    return {
        "concept": "style=flat",
        "adding": False,
        "sets": sets,
        "prompts": {"concept": 4, "other": 4},
        "seeds": 3,
        "rows": rows,
    }


def test_the_table_has_the_chosen_strengths(result):
    lines = results.markdown(result).splitlines()
    assert lines[0] == "**style=flat, removed** (4 prompts concept and 4 prompts other, 3 seeds)"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    heading, _, *rows = cells
    assert [each[:2] for each in rows] == [["plain", ""], ["sld", ""], ["steer rule=swap", "-2"]]
    assert all(len(each) == len(heading) for each in rows)
    assert rows[1][-2:] == ["1.50 (1.40-1.60)", "45, 15 with gradient"]
    assert rows[2][2] == "0.100 (0.00-0.20)"


def test_without_retention_the_table_has_all_strengths_and_says_why(result):
    for each in result["rows"]:
        each["chosen"] = not each["strength"]
        each["figures"] = each["figures"] or each["choosing"]
    text = results.markdown(result)
    assert "No strength is chosen" in text
    assert text.count("| steer rule=swap |") == 2


def test_the_csv_has_every_strength_and_figure(result):
    rows = list(csv.DictReader(io.StringIO(results.csv_text([result]))))
    assert {(each["method"], each["strength"]) for each in rows} == {
        ("plain", "0.0"),
        ("sld", "0.0"),
        ("steer rule=swap", "-1.0"),
        ("steer rule=swap", "-2.0"),
    }
    (found,) = [each for each in rows if each["strength"] == "-1.0" and each["figure"] == "concept"]
    assert (float(found["mean"]), found["chosen"], found["prompts"]) == (0.4, "False", "choosing")
    found = [each["prompts"] for each in rows if each["strength"] == "-2.0" and each["figure"] == "concept"]
    assert found == ["reported", "choosing"]
    assert [each["mean"] for each in rows if each["figure"] == "time_ratio"] == ["1.5"]
    assert [each["mean"] for each in rows if each["figure"] == "retention"] == ["0.75"] * 5
    (found,) = [each for each in rows if each["strength"] == "-1.0" and each["figure"] == "worst"]
    assert (float(found["low"]), float(found["high"])) == (0.5, 0.7)


def test_the_plot_has_a_point_per_method(result, tmp_path):
    figure = frontier.draw(result)
    left, right = figure.axes
    large = [line for line in left.lines if line.get_markersize() == 6]
    assert [(line.get_label(), line.get_ydata()[0]) for line in large] == [
        ("plain", pytest.approx(0.1)),
        ("steer rule=swap", pytest.approx(0.9)),
        ("sld", pytest.approx(0.8)),
    ]
    assert [line.get_xdata()[0] for line in right.lines] == [1.5]
    figure.savefig(tmp_path / "plot.png")


@pytest.mark.parametrize("blurred", [True, False])
def test_the_page_of_pictures_stands_alone_and_escapes_texts(result, tmp_path, blurred):
    shot = Shot(TaskPrompt("labeled", "0", CONCEPT, "<script>x</script>", 7, 2.5, 8, 8), 1)
    for key in ("k0.0", "k-2.0"):
        ImageFolder(tmp_path, key).write(shot, np.full((8, 8, 3), 9, np.uint8), False)
    page = pictures.page([(result, [shot])], tmp_path, "A & B", blurred)
    assert "<script>x" not in page
    assert "A &amp; B" in page
    assert page.count("data:image/png;base64,") == 3
    assert ('class="table blurred small"' in page) is blurred
    assert "http" not in page


def test_quality_and_harms_are_tables_of_their_own(result):
    before = results.markdown(result)
    add_quality(result["rows"])
    text = results.markdown(result)
    assert text.startswith(before.rstrip("\n"))  # the table of removal is the same
    lines = text.splitlines()
    start = lines.index("**style=flat: quality and retention**")
    assert lines[start + 2 : start + 5] == [
        "| method | strength | CLIP score | FID | survival |",
        "|---|---|---|---|---|",
        "| plain |  | 30.5 (20-31) | 28.25 | 0.500 (0.40-0.60) |",
    ]
    harms = lines[lines.index("**Most harmed neighbors**") + 4 :]
    assert harms[0] == "| sld |  | tiger | 1.000 | 0.250 | 0.750 (0.00-1.00) |"
    assert not any("bee" in line or line.startswith("| plain") for line in harms)
    rows = list(csv.DictReader(io.StringIO(results.csv_text([result]))))
    found = {each["figure"]: (each["mean"], each["high"]) for each in rows if each["method"] == "sld"}
    assert found["FID"] == ("18.25", "")
    assert found["CLIP score"] == ("20.5", "31.0")
    assert found["survival"][0] == "0.5"
    assert found["harm to bee"] == ("-0.5", "1.0")


@pytest.fixture
def folders(result, tmp_path):
    content = {name: name for name in results_comparison.SETTINGS} | {"torch": "2.13", "tasks": [result]}

    def write(name, **changes):
        folder = tmp_path / name / "benchmark"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(content | changes))
        return str(tmp_path / name)

    return write


def test_two_results_are_put_side_by_side(folders, result, capsys):
    other = json.loads(json.dumps(result))
    other["rows"][3]["figures"]["outcome"]["concept"]["mean"] = 0.3
    results_comparison.compare([folders("a"), folders("b", tasks=[other], torch="2.14")])
    printed = capsys.readouterr().out
    assert 'torch differs: "2.13" and "2.14"' in printed
    assert "| steer rule=swap | 0.100, 0.300, +0.200 |" in printed


@pytest.mark.parametrize(
    ("field", "reason"), [("judge", "the judge"), ("scheduler", "the scheduler"), ("guidance", "guidance scale")]
)
def test_results_of_other_settings_are_refused(folders, field, reason):
    with pytest.raises(InputError, match=reason):
        results_comparison.compare([folders("a"), folders("b", **{field: "other"})])


def test_figures_of_quality_are_compared_if_their_networks_are_equal(folders, result, capsys):
    add_quality(result["rows"])
    networks = {name: {"name": "net", "weights": {"a.safetensors": "12ab34cd" * 8}} for name in ("CLIP score", "FID")}
    content = {"quality": networks, "noun_judge": {"name": "clip"}, "tasks": [result]}
    results_comparison.compare([folders("a", **content), folders("b", **content)])
    printed = capsys.readouterr().out
    assert "| CLIP score | FID | survival | worst |" in printed
    assert "| 18.250, 18.250, +0.000 | 0.500, 0.500, +0.000 |" in printed
    other = {
        "quality": networks | {"FID": {"name": "net", "weights": {"a.safetensors": "34cd12ab" * 8}}},
        "noun_judge": {"name": "vlm"},
    }
    reason = (
        'the network or the reference of FID differs (weights: {"a.safetensors": "12ab34cd"} and {"a.safetensors": '
        '"34cd12ab"}); the judge of nouns differs (name: "clip" and "vlm")'
    )
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        results_comparison.compare([folders("c", **content), folders("d", **content | other)])
    assert "CLIP score" not in str(caught.value)
    # Without the figure on one side, or in results of an earlier version, the others are compared.
    for row in result["rows"]:
        del row["quality"], row["nouns"]
    results_comparison.compare([folders("e", tasks=[result]), folders("f", **content)])


def test_results_of_other_prompts_or_seeds_are_refused(folders, result):
    changed = json.loads(json.dumps(result)) | {"seeds": 1, "sets": {"labeled": {"fingerprint": "xyz"}}}
    with pytest.raises(InputError, match="3 and 1 seeds; style=flat: the prompts of labeled differ"):
        results_comparison.compare([folders("a"), folders("b", tasks=[changed])])
    with pytest.raises(InputError, match="no concept in common"):
        results_comparison.compare([folders("c"), folders("d", tasks=[changed | {"concept": "x"}])])


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(InputError, match="takes two"):
        results_comparison.compare(["a"])
    with pytest.raises(InputError, match=r"results.json: No such file"):
        results_comparison.compare([str(tmp_path), str(tmp_path)])
