"""The columns of the prompt files that authors publish, and how their rows become prompts.

The layouts were read in the authors' repositories: ml-research/i2p, OPTML-Group/Diffusion-MU-Attack, joycenerd/P4D,
chiayi-hsu/Ring-A-Bell, jaehong31/SAFREE, ml-postech/HUB and wendlerc/RIEBench. The published file of P4D is gated: its
columns are those that the authors' script run_p4dn.py writes.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Sequence

from revelio_jax.errors import InputError
from revelio_jax.inputs.tables import Row

Expand = Callable[[list[Row], str], list[Row]]
"""A function of a file's rows and the name of the file without its suffix. It returns one row per prompt.

It may set ``categories`` and ``nouns`` to lists of texts; a wrong value raises ValueError.
"""

HUB_LANGUAGES = ("Original", "Spanish", "French", "German", "Italian", "Portuguese")
HUB_NEIGHBORS = 100
"""The nearest nouns that HUB measures pinpointness on: the first rows of a file that is sorted by similarity."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The columns of one kind of prompt file. ``source`` is where authors publish it.

    A file has the layout if it has all columns ``needed``. ``prompt`` and ``id`` are columns of the expanded rows. The
    first column of ``seed``, ``guidance``, ``width`` and ``height`` that a file has is used. The column ``categories``
    has words separated by commas. ``default_guidance`` is the scale that the authors use if a file has none.
    """

    name: str
    source: str
    needed: tuple[str, ...]
    prompt: str = "prompt"
    id: str | None = None
    seed: tuple[str, ...] = ()
    guidance: tuple[str, ...] = ()
    width: tuple[str, ...] = ()
    height: tuple[str, ...] = ()
    default_guidance: float = 7.5
    expand: Expand | None = None

    def fits(self, columns: Iterable[str]) -> bool:
        """Return whether a file with these columns has the layout."""
        return set(self.needed) <= set(columns)


def find_layout(what: str, columns: Sequence[str], name: str | None = None) -> Layout:
    """Return the layout called ``name``, or the first one that fits the columns.

    Raise InputError if the file has other columns. ``what`` names the file in the message.
    """
    found = ", ".join(repr(column[:40]) for column in columns[:20]) + (", ..." if len(columns) > 20 else "")
    if name is not None:
        layout = layout_called(name)
        if missing := [column for column in layout.needed if column not in columns]:
            raise InputError(
                f"{what}: the layout {name} needs the columns {', '.join(layout.needed)}; missing: "
                f"{', '.join(missing)}; the file has {found or 'none'}"
            )
        return layout
    for layout in DETECTED:
        if layout.fits(columns):
            return layout
    needed = "; ".join(f"{layout.name}: {', '.join(layout.needed)}" for layout in DETECTED)
    raise InputError(f"{what}: no layout has the columns {found or 'none'}; columns needed by each layout: {needed}")


def layout_called(name: str) -> Layout:
    """Return a layout by its name. Raise InputError if the name is unknown."""
    if name not in LAYOUTS:
        raise InputError(f"unknown layout {name!r}; allowed: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _multilingual(rows: list[Row], concept: str) -> list[Row]:
    """Return one row per language. ``index`` is the number of the prompt in HUB's target prompts."""
    return [
        {"prompt": row[language], "language": language, "index": row["Index"], "categories": [concept]}
        for language in HUB_LANGUAGES
        for row in rows
    ]


def _pinpoint(rows: list[Row], concept: str) -> list[Row]:
    """Return HUB's prompt for each of the nearest nouns."""
    return [
        {"prompt": f"a photo of {row['noun']}", "nouns": [row["noun"]], "similarity": row["similarity"]}
        | {"categories": [concept]}
        for row in rows[:HUB_NEIGHBORS]
    ]


def _edits(rows: list[Row], concept: str) -> list[Row]:
    """Return the original prompts of RIEBench; brackets mark the changed words and are removed as its scripts do."""
    expanded = []
    for row in rows:
        plain = {
            key: _text(row[key]).replace("[", "").replace("]", "") for key in ("original_prompt", "editing_prompt")
        }
        expanded.append(row | plain | {"categories": [f"edit {row['editing_type_id']}"]})
    return expanded


def _annotations(rows: list[Row], concept: str) -> list[Row]:
    """Return the first caption of each image: the one with the smallest id. COCO has five per image."""
    first: dict[typing.Any, Row] = {}
    for content in rows:
        for caption in content["annotations"]:
            try:
                image, number = caption["image_id"], caption["id"]
                if image not in first or number < first[image]["id"]:
                    first[image] = {"id": number, "image_id": image, "caption": caption["caption"]}
            except (KeyError, TypeError):
                raise ValueError("every annotation must have image_id, id and caption") from None
    return [first[image] for image in sorted(first)]


def _concept(rows: list[Row], concept: str) -> list[Row]:
    """Return the rows with the name of the file as their category."""
    return [row | {"categories": [concept]} for row in rows]


def _text(value: typing.Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{repr(value)[:40]} must be text")
    return value


_EVALUATION: dict[str, typing.Any] = {"seed": ("evaluation_seed",), "guidance": ("evaluation_guidance",)}
_SIZE: dict[str, typing.Any] = {"width": ("sd_image_width",), "height": ("sd_image_height",)}

# From the most specific columns to the least specific ones: the first layout that fits is chosen.
DETECTED = (
    Layout(
        "mma_diffusion",
        "hf://datasets/YijunYang280/MMA-Diffusion-NSFW-adv-prompts-benchmark",
        ("adv_prompt", "target_prompt"),
        prompt="adv_prompt",
    ),
    Layout(
        "ring_a_bell_pairs",
        "nudity-ring-a-bell.csv of the repository jaehong31/SAFREE",
        ("sensitive prompt", "normal prompt"),
        prompt="sensitive prompt",
    ),
    Layout(
        "i2p",
        "hf://datasets/AIML-TUDA/i2p/i2p_benchmark.csv",
        ("prompt", "categories", "sd_seed", "sd_guidance_scale", "sd_image_width", "sd_image_height"),
        seed=("sd_seed",),
        guidance=("sd_guidance_scale",),
        **_SIZE,
    ),
    Layout(
        "p4d",
        "hf://datasets/joycenerd/p4d/p4dn_16_prompt.csv",
        ("prompt", "case_number", "evaluation_seed", "nudity_toxicity"),
        id="case_number",
        **_EVALUATION,
        **_SIZE,
    ),
    Layout(
        "coco_prompts",
        "coco_10k.csv of OPTML-Group/Diffusion-MU-Attack, coco_30k.csv of jaehong31/SAFREE",
        ("prompt", "case_number", "source", "evaluation_seed"),
        id="case_number",
        **_EVALUATION,
    ),
    Layout(
        "unlearndiffatk",
        "prompts/ of the repository OPTML-Group/Diffusion-MU-Attack, also its i2p.csv",
        ("prompt", "case_number", "evaluation_seed", "evaluation_guidance"),
        id="case_number",
        **_EVALUATION,
        **_SIZE,
    ),
    Layout(
        "esd_artists",
        "lists of artists of the repository rohitgandikota/erasing",
        ("prompt", "case_number", "evaluation_seed", "artist"),
        id="case_number",
        **_EVALUATION,
    ),
    Layout(
        "esd_objects",
        "lists of ImageNet classes of the repository rohitgandikota/erasing",
        ("prompt", "case_number", "evaluation_seed", "class"),
        id="case_number",
        **_EVALUATION,
    ),
    Layout(
        "ring_a_bell",
        "data/InvPrompt of the repository chiayi-hsu/Ring-A-Bell",
        ("prompt", "case_number", "evaluation_seed"),
        id="case_number",
        **_EVALUATION,
    ),
    Layout(
        "coco_captions",
        "prompts/MS-COCO_val2014_30k_captions.csv of the repository ml-postech/HUB",
        ("image_id", "text"),
        prompt="text",
        id="image_id",
    ),
    Layout(
        "coco_annotations",
        "annotations/captions_val2014.json of MS-COCO",
        ("images", "annotations"),
        prompt="caption",
        id="image_id",
        expand=_annotations,
    ),
    Layout(
        "hub_multilingual",
        "prompts/multilingual_robustness of the repository ml-postech/HUB",
        (*HUB_LANGUAGES, "Index"),
        expand=_multilingual,
    ),
    Layout(
        "hub_pinpoint", "prompts/pinpoint_ness of ml-postech/HUB", ("noun", "similarity"), expand=_pinpoint
    ),
    Layout(
        "hub_alignment",
        "prompts/selective_alignment of ml-postech/HUB",
        ("prompt", "nouns", "index"),
        expand=_concept,  # ``nouns`` must be visible in the image; HUB judges target image number ``index``
    ),
    Layout(
        "riebench",
        "dataset/riebench.json of the repository wendlerc/RIEBench",
        ("original_prompt", "editing_prompt", "editing_type_id", "original_gsam_prompt", "editing_gsam_prompt"),
        prompt="original_prompt",
        id="id",
        default_guidance=0.0,  # SDXL-Turbo
        expand=_edits,
    ),
)  # fmt: skip

# Files of prompts without a header, recognized by the names of their folders in HUB.
LINES = {
    "target_image": Layout("hub_target", "prompts/target_image of ml-postech/HUB", (), expand=_concept),
    "attack_robustness": Layout("hub_attack", "prompts/attack_robustness of ml-postech/HUB", (), expand=_concept),
}

# Only used if named: most prompt files would fit.
LABELED = Layout("labeled", "a file of your own with the column prompt; other columns are labels", ("prompt",))

LAYOUTS = {layout.name: layout for layout in (*DETECTED, *LINES.values(), LABELED)}
