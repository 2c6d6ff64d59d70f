"""Prompt sets of the literature: invented, harmless rows in the layouts of their authors."""

import csv
import json
import shutil

import pyarrow
import pyarrow.parquet
import pytest

from revelio_jax.errors import InputError
from revelio_jax.inputs.prompt_layouts import DETECTED, LAYOUTS
from revelio_jax.inputs.prompt_sets import PromptRecord, read_prompt_set
from tests.helpers import ROOT

PANDAS = {"Unnamed: 0": "7"}  # the row number that pandas writes
I2P = {
    **PANDAS,
    "prompt": "a red kite, painted",
    "categories": "wind, play",
    "hard": "0",
    "lexica_url": "https://example.org/1",
    "sd_seed": "4261553411",
    "sd_guidance_scale": "7",
    "sd_image_width": "512",
    "sd_image_height": "768",
}
UNLEARN = {
    **PANDAS,
    "prompt": "a pond",
    "categories": "water",
    "evaluation_seed": "69922",
    "evaluation_guidance": "7.5",
    "sd_image_width": "640",
    "sd_image_height": "512",
    "case_number": "21",
}
SETTINGS = {"seed": 42, "guidance": 7.5, "width": 512, "height": 512}
# layout -> (rows as its authors publish them, the first record, number of records)
EXAMPLES = {
    "i2p": (
        [I2P],
        PromptRecord(
            "0", "a red kite, painted", 4261553411, 7.0, 512, 768, ("wind", "play"),
            labels={"hard": "0", "lexica_url": "https://example.org/1"},
        ),
        1,
    ),
    "p4d": (
        [{"": "0", **UNLEARN, "nudity_toxicity": "0.0"}],
        PromptRecord("21", "a pond", 69922, 7.5, 640, 512, ("water",), labels={"nudity_toxicity": "0.0"}),
        1,
    ),
    "unlearndiffatk": ([UNLEARN], PromptRecord("21", "a pond", 69922, 7.5, 640, 512, ("water",)), 1),
    "esd_artists": (
        [{"case_number": "3", "prompt": "a pond", "evaluation_seed": "5", "artist": "nobody"}],
        PromptRecord("3", "a pond", 5, 7.5, 512, 512, labels={"artist": "nobody"}),
        1,
    ),
    "esd_objects": (
        [{"case_number": "3", "prompt": "a pond", "evaluation_seed": "5", "class": "pond"}],
        PromptRecord("3", "a pond", 5, 7.5, 512, 512, labels={"class": "pond"}),
        1,
    ),
    "ring_a_bell": (
        [{"prompt": "kite sky", "case_number": "3", "evaluation_seed": "5"}],
        PromptRecord("3", "kite sky", 5, 7.5, 512, 512),
        1,
    ),
    "ring_a_bell_pairs": (
        [{"sensitive prompt": "kite sky", "normal prompt": "sky"}],
        PromptRecord("0", "kite sky", 42, 7.5, 512, 512, labels={"normal prompt": "sky"}),
        1,
    ),
    "mma_diffusion": (
        [{"target_prompt": "a kite", "adv_prompt": "kyte hh", "sanitized_adv_prompt": "hh", "clean_prompt": "sky"}],
        PromptRecord(
            "0", "kyte hh", 42, 7.5, 512, 512,
            labels={"target_prompt": "a kite", "sanitized_adv_prompt": "hh", "clean_prompt": "sky"},
        ),
        1,
    ),
    "coco_prompts": (
        [{"case_number": "000000203564", "source": "coco-30k", "prompt": "A clock.", "evaluation_seed": "41337"}],
        PromptRecord("000000203564", "A clock.", 41337, 7.5, 512, 512, labels={"source": "coco-30k"}),
        1,
    ),
    "coco_captions": (
        [{"image_id": "521669", "text": "A clock."}],
        PromptRecord("521669", "A clock.", 42, 7.5, 512, 512),
        1,
    ),
    "hub_multilingual": (
        [
            {language: f"{language} {i}" for language in ("Original", "Spanish", "French", "German", "Italian")}
            | {"Portuguese": f"Portuguese {i}", "Index": f"{i}8"}
            for i in range(2)
        ],
        PromptRecord(
            "0", "Original 0", 42, 7.5, 512, 512, ("hub_multilingual",), labels={"language": "Original", "index": "08"}
        ),
        12,
    ),
    "hub_pinpoint": (
        [{"noun": "pond", "similarity": "0.801"}] + [{"noun": f"n{i}", "similarity": "0.5"} for i in range(150)],
        PromptRecord(
            "0", "a photo of pond", 42, 7.5, 512, 512, ("hub_pinpoint",), ("pond",), labels={"similarity": "0.801"}
        ),
        100,
    ),
    "hub_alignment": (
        [{"prompt": "a kite over a pond", "nouns": ["kite", "pond"], "index": 1824}],
        PromptRecord(
            "0", "a kite over a pond", 42, 7.5, 512, 512, ("hub_alignment",), ("kite", "pond"), labels={"index": "1824"}
        ),
        1,
    ),
    "riebench": (
        [
            {
                "id": "111000000000",
                "editing_type_id": "1",
                "original_prompt": "[kite] over a pond",
                "editing_prompt": "[balloon] over a pond",
                "editing_instruction": "change the kite to a balloon",
                "original_gsam_prompt": "kite",
                "editing_gsam_prompt": "balloon",
            }
        ],
        PromptRecord(
            "111000000000", "kite over a pond", 42, 0.0, 512, 512, ("edit 1",),
            labels={
                "editing_type_id": "1",
                "editing_prompt": "balloon over a pond",
                "editing_instruction": "change the kite to a balloon",
                "original_gsam_prompt": "kite",
                "editing_gsam_prompt": "balloon",
            },
        ),
        1,
    ),
}  # fmt: skip
CAPTIONS = {
    "info": {"year": 2014},
    "images": [{"id": 9, "width": 640, "height": 427}, {"id": 4, "width": 640, "height": 480}],
    "annotations": [
        {"image_id": 9, "id": 30, "caption": "A clock."},
        {"image_id": 9, "id": 12, "caption": "A large clock."},
        {"image_id": 4, "id": 31, "caption": "A pond."},
    ],
}


def write(path, rows):
    """Write rows in the format of the path's suffix."""
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows))
    return str(path)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        (name, suffix)
        for name in EXAMPLES
        for suffix in (".csv", ".tsv", ".json", ".jsonl", ".parquet")
        if (name, suffix) not in (("hub_alignment", ".csv"), ("hub_alignment", ".tsv"))  # its nouns are lists
    ],
)
def test_every_layout_is_found_by_its_columns(name, suffix, tmp_path):
    rows, record, count = EXAMPLES[name]
    location = write(tmp_path / f"{name}{suffix}", rows)
    found = read_prompt_set(location)
    assert (found.layout, len(found.records), found.records[0]) == (name, count, record)
    assert found.defaults == {
        key: value for key, value in (SETTINGS | {"guidance": record.guidance}).items() if key in found.defaults
    }
    assert read_prompt_set(location, layout=name) == found


def test_the_examples_cover_all_layouts():
    assert set(EXAMPLES) | {"coco_annotations", "hub_target", "hub_attack", "labeled"} == set(LAYOUTS)
    assert len({layout.needed for layout in DETECTED}) == len(DETECTED)
    guide = (ROOT / "docs" / "prompt_sets.md").read_text()
    assert not [name for name in LAYOUTS if f"`{name}`" not in guide]


def test_coco_annotations_give_the_first_caption_of_each_image(tmp_path):
    found = read_prompt_set(write(tmp_path / "captions.json", CAPTIONS))
    assert found.layout == "coco_annotations"
    assert [(record.id, record.prompt) for record in found.records] == [("4", "A pond."), ("9", "A large clock.")]
    CAPTIONS_WITHOUT_ID = CAPTIONS | {"annotations": [{"image_id": 9, "caption": "A clock."}]}
    with pytest.raises(InputError, match="every annotation must have image_id, id and caption"):
        read_prompt_set(write(tmp_path / "captions.json", CAPTIONS_WITHOUT_ID))
    with pytest.raises(InputError, match="it has no prompts"):
        read_prompt_set(write(tmp_path / "captions.json", CAPTIONS | {"annotations": []}))


@pytest.mark.parametrize(("folder", "name"), [("target_image", "hub_target"), ("attack_robustness", "hub_attack")])
def test_lines_without_a_header_are_known_by_their_folder_or_name(folder, name, tmp_path):
    path = tmp_path / folder / "kite.csv"
    path.parent.mkdir()
    path.write_text('a kite, red\n"a" kite\n\n')
    found = read_prompt_set(str(path))
    assert (found.layout, [record.prompt for record in found.records]) == (name, ["a kite, red", '"a" kite'])
    assert {record.categories for record in found.records} == {("kite",)}
    elsewhere = shutil.copy(path, tmp_path / "kite.txt")
    assert read_prompt_set(str(elsewhere), layout=name).records == found.records
    with pytest.raises(InputError, match=r"a text file has no columns; name its layout \(hub_target, hub_attack\)"):
        read_prompt_set(str(elsewhere))


def test_the_caller_chooses_defaults_and_the_summary_names_them(tmp_path):
    location = write(tmp_path / "a.csv", EXAMPLES["ring_a_bell"][0])
    found = read_prompt_set(location, guidance=3.0, width=1024, height=768, seed=9)
    assert found.defaults == {"guidance": 3.0, "width": 1024, "height": 768}
    record = found.records[0]
    assert (record.seed, record.guidance, record.width, record.height) == (5, 3.0, 1024, 768)
    assert found.summary() == (
        f"{location}: ring_a_bell, 1 prompts; from the file: seed; defaults: guidance 3, width 1024, height 768"
    )
    assert "kite" not in found.summary()


def test_a_file_of_your_own_is_read_only_if_its_layout_is_named(tmp_path):
    location = write(tmp_path / "mine.csv", [{"prompt": "a pond", "style": "flat"}])
    with pytest.raises(InputError, match="no layout has the columns 'prompt', 'style'"):
        read_prompt_set(location)
    (record,) = read_prompt_set(location, layout="labeled").records
    assert record == PromptRecord("0", "a pond", 42, 7.5, 512, 512, labels={"style": "flat"})


def test_categories_can_be_counted_and_chosen(tmp_path):
    rows = [I2P, I2P | {"categories": "play"}, I2P | {"categories": ""}]
    found = read_prompt_set(write(tmp_path / "a.csv", rows))
    assert found.categories() == {"play": 2, "wind": 1}
    assert [record.id for record in found.in_category("wind").records] == ["0"]
    with pytest.raises(InputError, match=r"unknown category 'rain'; .* has play, wind"):
        found.in_category("rain")


def test_a_folder_has_one_layout(tmp_path):
    for concept in ("kite", "pond"):
        write(tmp_path / "pinpoint_ness" / f"{concept}.csv", [{"noun": concept, "similarity": "0.5"}])
    (tmp_path / "pinpoint_ness" / "README.md").write_text("no prompts")
    found = read_prompt_set(str(tmp_path / "pinpoint_ness"))
    assert [(record.id, record.categories) for record in found.records] == [
        ("kite/0", ("kite",)),
        ("pond/0", ("pond",)),
    ]
    with pytest.raises(InputError, match=r"the folder has no \.csv, .* files; folders in it: pinpoint_ness"):
        read_prompt_set(str(tmp_path))
    write(tmp_path / "pinpoint_ness" / "other.csv", EXAMPLES["ring_a_bell"][0])
    with pytest.raises(InputError, match=r"one layout; found hub_pinpoint \(pond\), ring_a_bell \(other\)"):
        read_prompt_set(str(tmp_path / "pinpoint_ness"))
    write(tmp_path / "unlearn" / "a.csv", EXAMPLES["unlearndiffatk"][0])
    write(tmp_path / "unlearn" / "b.csv", [{key: UNLEARN[key] for key in LAYOUTS["unlearndiffatk"].needed}])
    with pytest.raises(InputError, match="some of its files have columns of seed, guidance or size, others do not"):
        read_prompt_set(str(tmp_path / "unlearn"))
    write(tmp_path / "twice" / "a.csv", EXAMPLES["unlearndiffatk"][0])
    write(tmp_path / "twice" / "a.json", EXAMPLES["unlearndiffatk"][0])
    with pytest.raises(InputError, match="two of its files have the same name without the suffix"):
        read_prompt_set(str(tmp_path / "twice"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "text,label\na,b\n",
            r"no layout has the columns 'text', 'label'; .* i2p: prompt, categories, sd_seed",
        ),
        ("a.csv", "prompt,case_number,evaluation_seed\n", "it has no prompts"),
        ("a.csv", "prompt,case_number,evaluation_seed\na,1,x\n", "the evaluation_seed of prompt 0 is 'x'; it must be"),
        ("a.csv", "prompt,case_number,evaluation_seed\na,1\n", "line 2 has 2 fields, the header 3"),
        ("a.json", "{", "not JSON"),
        ("a.json", "[1]", "item 0 is not a JSON object"),
        ("a.json", '[{"image_id": 1, "text": "a"}, {"image_id": 2}]', "row 1 has no 'text'; the layout coco_captions"),
        ("a.json", '[{"image_id": 1, "text": 3}]', "the prompt of row 0 is not text"),
        ("a.json", '[{"prompt": "a", "nouns": [3], "index": 1}]', "nouns of row 0 must be lists of texts"),
        ("a.json", '{"images": [], "annotations": 3}', "layout coco_annotations: 'int' object is not iterable"),
        (
            "a.json",
            '[{"prompt": "a", "case_number": 1, "source": "b", "evaluation_seed": 1, "evaluation_guidance": 2},'
            ' {"prompt": "a", "case_number": 1, "source": "b", "evaluation_seed": 1}]',
            "row 1 has no 'evaluation_guidance', which other rows have",
        ),
        ("a.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer without prompts"),
        ("a.zip", "", r"unknown suffix '\.zip'; allowed: \.csv, \.tsv"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        read_prompt_set(str(tmp_path / name))
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"prompt set {str(tmp_path / name)!r}: ")


def test_wrong_names_are_refused(tmp_path):
    location = write(tmp_path / "a.csv", EXAMPLES["ring_a_bell"][0])
    with pytest.raises(InputError, match="unknown layout 'i3p'; allowed: mma_diffusion, "):
        read_prompt_set(location, layout="i3p")
    with pytest.raises(InputError, match=r"i2p needs the columns prompt, categories, .* missing: categories, sd_seed"):
        read_prompt_set(location, layout="i2p")
    with pytest.raises(InputError, match=r"none\.csv': No such file"):
        read_prompt_set(str(tmp_path / "none.csv"))


def test_a_file_on_the_hub_is_downloaded(tmp_path, monkeypatch):
    """The download is replaced by a local file; the rest is the code that users run."""
    import huggingface_hub

    location = write(tmp_path / "i2p.csv", [I2P])
    asked = []

    def download(repository, file, **options):
        asked.append((repository, file, options))
        return location

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = read_prompt_set("hf://datasets/someone/kites/data/i2p.csv")
    assert found.layout == "i2p"
    assert found.records == read_prompt_set(location).records
    read_prompt_set("hf://datasets/someone/kites@v2/i2p.csv")
    assert asked == [
        ("someone/kites", "data/i2p.csv", {"repo_type": "dataset", "revision": None}),
        ("someone/kites", "i2p.csv", {"repo_type": "dataset", "revision": "v2"}),
    ]
    with pytest.raises(InputError, match="must be hf://datasets/owner/name/file"):
        read_prompt_set("hf://someone/kites/i2p.csv")

    def fail(*_, **options):
        raise OSError("Access to dataset someone/kites is restricted.\nLog in.")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(InputError, match=r"OSError: Access to dataset someone/kites is restricted\. Log in\."):
        read_prompt_set("hf://datasets/someone/kites/i2p.csv")


def test_a_dataset_of_the_hub_is_loaded(monkeypatch, tmp_path):
    """The dataset comes from memory instead of the hub; the rest is the code that users run."""
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list(EXAMPLES["mma_diffusion"][0])

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read_prompt_set("someone/kites", split="test")
    assert asked == [("someone/kites", "test")]
    assert (found.layout, found.records) == ("mma_diffusion", (EXAMPLES["mma_diffusion"][1],))

    def fail(*_, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match="prompt set 'someone/kites': ConnectionError: no network"):
        read_prompt_set("someone/kites")
