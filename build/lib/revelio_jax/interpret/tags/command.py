"""What latents mean, said by a vision-language model: a label, its granularity, and how well it predicts.

    python -m revelio_jax.interpret.tags --config FILE --config.tags.model=HUB_ID_OR_FOLDER
    python -m revelio_jax.interpret.tags --config FILE --latents 3,17 \\
        --config.tags.endpoint=http://localhost:8000/v1 --config.tags.model=NAME

Needs what python -m revelio_jax.interpret wrote; nothing else needs tags. The model is one of transformers
(image-text-to-text, with a chat template), or any that an OpenAI-compatible server has; a key is read from
the environment variable that config.tags.key names. It is shown the strongest samples of a latent,
pictures with their heat map and a crop at the peak, or prompts with the words that fire marked, and asked
for a label and, as multiple choice, of which kind it is:

    image   class, part, shape, texture, colour, style, layout, none
    text    word, phrase, topic, syntax, style, none

Then it is asked of samples that it was not shown, one by one and unmarked, whether the label applies. The
score is its balanced accuracy, the mean of the share of firing samples that it says yes of and of silent ones
that it says no of: 0.5 is chance.

Writes tags.parquet beside the results: a row a latent; rows of latents not asked about stay. Every answer is
kept in runs/<name>/tags_cache.jsonl, so a run that was stopped goes on with the same command, and one that is
repeated asks nothing twice. What cannot be understood is null, and counted.
"""

import dataclasses
import math
import multiprocessing.pool
import os
import pathlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError, require
from revelio_jax.interpret.latents import results
from revelio_jax.interpret.latents.results import Results
from revelio_jax.interpret.tags import answers, evidence, questions
from revelio_jax.interpret.tags.answers import Answers, VisionLanguageModel
from revelio_jax.interpret.tags.endpoint import open_endpoint
from revelio_jax.interpret.tags.evidence import LatentEvidence
from revelio_jax.interpret.wilson import Z, wilson

DRAWN = "drawn"
ENOUGH = 10  # latents whose mean score has an interval
FLAGS = {"latents": (DRAWN, "their numbers, as 3,17; drawn are config.tags.latents of those that fire")}
SCHEMA = pyarrow.schema(
    {
        "latent": pyarrow.int32(),
        "label": pyarrow.string(),
        "granularity": pyarrow.string(),
        "score": pyarrow.float64(),
        "score_low": pyarrow.float64(),
        "score_high": pyarrow.float64(),
        "held_out": pyarrow.int32(),
        "model": pyarrow.string(),
    }
)


@dataclasses.dataclass(frozen=True)
class Tag:
    """A row of tags.parquet, and how many answers on held-out samples said neither yes nor no."""

    latent: int
    label: str | None
    granularity: str | None
    score: float | None
    score_low: float | None
    score_high: float | None
    held_out: int
    model: str
    unclear: int


@dataclasses.dataclass(frozen=True, eq=False)
class Tagged:
    """The tags of a run; ``asked`` and ``found`` count answers of the model and of the file."""

    found: Results
    tags: tuple[Tag, ...]
    answers: Answers
    seconds: float


def tag(config: Config, latents: Sequence[int] = ()) -> Tagged:
    """Ask about ``latents``, or about those that config draws, and write tags.parquet.

    Raises InputError before anything is asked where something does not fit, and where the model does not
    answer; what was answered by then is written, as it is on Ctrl-C.
    """
    found = results.load(_folder(config))
    wanted = _wanted(found, latents) or evidence.choose(found, config.tags.latents)
    material = evidence.open_material(found, config.extract)
    stop = threading.Event()
    model = _model(config, stop)
    kept = Answers(pathlib.Path(config.run, answers.NAME), model, stop)

    def one(latent: int) -> Tag:
        options = config.tags
        return tag_latent(material, kept, model.name, latent, options.images, options.held_out)

    tags, started = [], time.perf_counter()
    try:
        for tagged in tqdm(_each(one, wanted, model.parallel), "tags", len(wanted), unit="latent", dynamic_ncols=True):
            tags.append(tagged)
    finally:
        stop.set()  # threads that are still asking ask no more
        if tags:
            write(found, tags)
    return Tagged(found, tuple(tags), kept, time.perf_counter() - started)


def tag_latent(material: LatentEvidence, kept: Answers, model: str, latent: int, pictures: int, held: int) -> Tag:
    """Ask all questions about a latent."""
    kind, has_maps = material.kind, material.has_maps
    shown = material.shown(latent, pictures)
    label = granularity = None
    if shown:
        label = questions.read_label(kept.ask(questions.about_label(kind, shown, has_maps), latent))
        question = questions.about_granularity(kind, shown, has_maps, latent)
        granularity = questions.read_granularity(kept.ask(question, latent), kind, latent)
    said: list[tuple[bool, bool | None]] = []
    if label:
        for exhibit, fires in material.held_out(latent, shown, held):
            answer = kept.ask(questions.about_sample(kind, label, exhibit), latent)
            said.append((fires, questions.read_applies(answer)))
    clear = [(fires, yes) for fires, yes in said if yes is not None]
    return Tag(latent, label, granularity, *score(clear), len(clear), model, len(said) - len(clear))


def score(said: Sequence[tuple[bool, bool]]) -> tuple[float | None, float | None, float | None]:
    """Balanced accuracy of (fires, said to apply), with a 95 % interval; None with too few of a kind.

    Of each of the two shares Wilson's interval, joined as Newcombe joins two (1998, "Interval estimation for
    the difference between independent proportions", method 10); their mean is half of a sum.
    """
    shares = []
    for kind in (True, False):
        right = [yes == fires for fires, yes in said if fires == kind]
        if len(right) < evidence.FEWEST:
            return None, None, None
        shares.append((sum(right) / len(right), *wilson(sum(right) / len(right), len(right))))
    mean = sum(share for share, _, _ in shares) / 2
    below = math.hypot(*(share - low for share, low, _ in shares)) / 2
    above = math.hypot(*(high - share for share, _, high in shares)) / 2
    return mean, max(0.0, mean - below), min(1.0, mean + above)


def write(found: Results, tags: Sequence[Tag]) -> None:
    """Write tags.parquet, whole or not at all; rows of other latents stay."""
    before = found.tags()
    rows = {row["latent"]: row for row in before.to_pylist()} if before else {}
    rows |= {tag.latent: dataclasses.asdict(tag) for tag in tags}
    columns = {name: [rows[latent].get(name) for latent in sorted(rows)] for name in SCHEMA.names}
    path = found.folder / "tags.parquet"
    part = path.with_name(path.name + ".part")
    pyarrow.parquet.write_table(pyarrow.table(columns, SCHEMA), part)
    os.replace(part, path)


def _each(one: Callable[[int], Tag], latents: Sequence[int], parallel: int) -> Iterator[Tag]:
    """The tags of all latents, as they are ready."""
    if parallel == 1:
        yield from map(one, latents)
        return
    with multiprocessing.pool.ThreadPool(min(parallel, len(latents))) as threads:
        yield from threads.imap_unordered(one, latents)


def _folder(config: Config) -> pathlib.Path:
    if not config.run:
        raise InputError("config.run is empty; it names the folder of the run, as runs/mini_sd")
    return results.folder_of(config.run, config.interpret.sae)


def _wanted(found: Results, latents: Sequence[int]) -> list[int]:
    """Latents that were named, checked."""
    count = found.facts["latents"]
    for latent in latents:
        if not 0 <= latent < count:
            raise InputError(f"--latents names {latent}; {found.folder} has 0 to {count - 1}")
    return sorted(set(latents))


def _model(config: Config, stop: threading.Event) -> VisionLanguageModel:
    options = config.tags
    if not options.model:
        raise InputError(
            "config.tags.model is empty; it names an image-text-to-text model, by hub id or folder, "
            "or with config.tags.endpoint as the endpoint calls it"
        )
    if options.endpoint:
        return open_endpoint(options, stop)
    require("transformers", "steer", "config.tags.model")
    from revelio_jax.interpret.tags.local_model import (
        open_model,  # it imports torch, which an endpoint needs not
    )

    return open_model(options, config.model.device)


def numbers(said: str) -> list[int]:
    """What --latents names. Raises InputError."""
    if said == DRAWN:
        return []
    try:
        return [int(number) for number in said.split(",")]
    except ValueError as error:
        raise InputError(f"--latents is {said!r}; it must be numbers, as 3,17") from error


def summary(made: Tagged) -> str:
    """The tags in a few lines."""
    tags, facts = made.tags, made.found.facts
    lines = [
        f"{facts['name']}, {facts['site']}: {len(tags):,} latents, {made.answers.asked:,} answers in "
        f"{made.seconds:.1f} s, {made.answers.found:,} kept ones",
    ]
    kinds = Counter(tag.granularity for tag in tags if tag.granularity)
    total = sum(kinds.values())
    if total:
        shares = ", ".join(f"{kind} {n / total:.0%}" for kind, n in kinds.most_common())
        lines.append(f"granularity: {shares}")
    scores = [tag.score for tag in tags if tag.score is not None]
    if scores:
        lines.append(f"score {_mean(scores)} over {len(scores):,} latents, by chance 0.50")
    missing = {
        "latents without a label": sum(tag.label is None for tag in tags),
        "without a granularity": sum(tag.granularity is None for tag in tags),
        "labels without a score, for want of samples or of clear answers": sum(
            tag.label is not None and tag.score is None for tag in tags
        ),
        "answers neither yes nor no": sum(tag.unclear for tag in tags),
    }
    lines += [f"{name}: {count:,}" for name, count in missing.items() if count]
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    """Mean, and its 95 % interval over latents where they are enough for a normal one."""
    mean = sum(values) / len(values)
    if len(values) < ENOUGH:
        return f"{mean:.2f}"
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = Z * math.sqrt(variance / len(values))
    return f"{mean:.2f} ({max(0.0, mean - half):.2f}-{min(1.0, mean + half):.2f})"


def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.interpret.tags", *argv], __doc__, **FLAGS)
    made = tag(config, numbers(flags["latents"]))
    print(summary(made))
    print(f"tags: {made.found.folder / 'tags.parquet'}")
