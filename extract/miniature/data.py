"""The training and test data of the miniatures: emoji in three styles with captions.

The images come from three npm packages. ``npm pack`` downloads them into a cache folder; they are not committed. An
*object* is an emoji that all three packages draw. It has a name, a category and one 32 x 32 image per style. Some
pairs of style and object are held out of training, to measure the miniatures on them.
"""

import collections
import dataclasses
import json
import pathlib
import random
import subprocess
import tarfile

import numpy as np
from PIL import Image

PACKAGES = {
    "noto": ("emoji-datasource-google@16.0.0", "img/google/64/{code}.png"),
    "flat": ("emoji-datasource-twitter@16.0.0", "img/twitter/64/{code}.png"),
    "glossy 3d": ("@lobehub/fluent-emoji-3d@1.1.0", "assets/{code}.webp"),
}
STYLES = tuple(PACKAGES)
CATEGORIES = {
    "heart": ("heart",),
    "face": (
        *("face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical"),
        *("face-sleepy", "face-unwell", "face-hat", "face-glasses", "face-concerned"),
    ),
    "animal": (
        *("animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile"),
        *("animal-marine", "animal-bug", "cat-face", "monkey-face"),
    ),
    "food": ("food-fruit", "food-vegetable", "food-prepared", "food-sweet"),
    "vehicle": ("transport-ground", "transport-water", "transport-air"),
    "plant": ("plant-flower", "plant-other"),
    "hand": (
        *("hand-fingers-open", "hand-fingers-partial", "hand-single-finger"),
        *("hand-fingers-closed", "hands"),
    ),
    "building": ("place-building", "place-religious"),
}
# Emoji of a subcategory that do not look like its category.
NOT_OF_THEIR_CATEGORY = {
    *("love letter", "heavy heart exclamation mark ornament", "heart decoration", "paw prints"),
    *("motorway", "railway track", "fuel pump", "bus stop", "oil drum", "police cars revolving light"),
    *("horizontal traffic light", "vertical traffic light", "octagonal sign", "construction sign"),
    *("wheel", "anchor", "ring buoy", "seat", "brick", "rock", "wood", "parachute", "spider web"),
    *("feather", "wing", "coral", "microbe", "salt shaker", "heart exclamation"),
}
RENAMED = {"heavy black heart": "red heart"}
SIZE = 32
HELD_OUT_SHARE = 0.3  # of the objects, each without one of its three styles: a tenth of the pairs

STYLED = (
    "{style} emoji of {name}",
    "a {style} emoji of a {name}",
    "{name} in {style} style",
    "a {name}, {style} style",
    "{style} {category} emoji: {name}",
    "{style} picture of a {name}",
)
PLAIN = ("emoji of {name}", "a {name}", "{category} emoji: {name}", "picture of a {name}")
GENERIC = (
    "{style} emoji of a {category}",
    "a {category} in {style} style",
    "{style} {category}",
    "{style} emoji",
    "{style}",
    "{category}",
    "emoji of a {category}",
)


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One object in one style. ``category`` is None for objects outside CATEGORIES."""

    name: str
    style: str
    category: str | None
    subcategory: str
    held_out: bool


def fetch(cache: pathlib.Path) -> dict[str, pathlib.Path]:
    """Download and unpack the three packages; return the unpacked folder of each style."""
    cache.mkdir(parents=True, exist_ok=True)
    folders = {}
    for style, (package, _) in PACKAGES.items():
        stem = package.lstrip("@").replace("/", "-").replace("@", "-")
        folder = cache / stem
        if not folder.exists():
            subprocess.run(["npm", "pack", "--silent", package], cwd=cache, check=True)
            partial = folder.with_suffix(".partial")
            with tarfile.open(cache / f"{stem}.tgz") as archive:
                archive.extractall(partial, filter="data")
            partial.rename(folder)
        folders[style] = folder / "package"
    return folders


def load(cache: pathlib.Path) -> tuple[np.ndarray, list[Emoji]]:
    """Return images of every emoji that exists in all three styles, without flags.

    Return pixels on white, uint8 [images, 32, 32, 3], and the emoji of each image.
    """
    folders = fetch(cache)
    category_of = {sub: category for category, subs in CATEGORIES.items() for sub in subs}
    entries = json.loads((folders["noto"] / "emoji.json").read_text())
    pixels, rows = [], []
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        if entry["category"] in ("Component", "Flags"):
            continue
        paths = {style: _file_of(entry["unified"], style, folders[style]) for style in STYLES}
        files = {style: path for style, path in paths.items() if path is not None}
        if len(files) < len(STYLES):
            continue
        name = entry["name"].lower()
        category = category_of.get(entry["subcategory"])
        if name in NOT_OF_THEIR_CATEGORY:
            category = None
        for style, file in files.items():
            pixels.append(_render(file))
            rows.append((RENAMED.get(name, name), style, category, entry["subcategory"]))
    held_out = _held_out_pairs({name for name, _, category, _ in rows if category})
    return np.stack(pixels), [Emoji(*row, held_out=(row[0], row[1]) in held_out) for row in rows]


def caption(emoji: Emoji, rng: random.Random) -> str:
    """Return a random caption: 10 % are empty (for guidance), 15 % have no style, 7 % have no name."""
    draw = rng.random()
    if draw < 0.10:
        return ""
    templates = PLAIN if draw < 0.25 else GENERIC if draw < 0.32 else STYLED
    return _fill(rng.choice(templates), emoji)


def balanced_weights(emojis: list[Emoji]) -> list[float]:
    """Return a sampling weight for each image, which oversamples rare categories."""
    counts = collections.Counter(emoji.category for emoji in emojis)
    return [counts[emoji.category] ** -0.5 for emoji in emojis]


def all_captions(emojis: list[Emoji]) -> list[dict[str, str]]:
    """Return every possible caption once, with its labels; a label is ``""`` if the caption does not contain it.

    Captions of held-out pairs are included: the text encoder reads them too.
    """
    rows = {}
    for emoji in emojis:
        if emoji.category is None:
            continue
        for template in (*PLAIN, *STYLED, *GENERIC):
            values = {"style": emoji.style, "category": emoji.category, "name": emoji.name}
            labels = {key: value if "{" + key + "}" in template else "" for key, value in values.items()}
            if labels["name"]:
                labels["category"] = emoji.category
            rows.setdefault(_fill(template, emoji), labels)
    return [{"prompt": prompt, **labels} for prompt, labels in rows.items()]


def _fill(template: str, emoji: Emoji) -> str:
    return template.format(style=emoji.style, name=emoji.name, category=emoji.category)


def _file_of(unified: str, style: str, folder: pathlib.Path) -> pathlib.Path | None:
    code = unified.lower()
    for candidate in (code, code.replace("-fe0f", "")):  # some packages omit the variation selector
        file = folder / PACKAGES[style][1].format(code=candidate)
        if file.exists():
            return file
    return None


def _render(file: pathlib.Path) -> np.ndarray:
    image = Image.open(file).convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(image)
    return np.asarray(white.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _held_out_pairs(names: set[str]) -> set[tuple[str, str]]:
    rng = random.Random(7)
    chosen = rng.sample(sorted(names), round(HELD_OUT_SHARE * len(names)))
    return {(name, rng.choice(STYLES)) for name in chosen}
