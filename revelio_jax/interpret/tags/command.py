"""Tag latents with a vision-language model: a label, its granularity, and a score of how well it predicts firing.

    revelio tags --config FILE --config.tags.model=HUB_ID_OR_FOLDER
    revelio tags --config FILE --latents 3,17 \\
        --config.tags.endpoint=http://localhost:8000/v1 --config.tags.model=NAME

Run revelio interpret first; tags are optional for all other commands. The model is an image-text-to-text model of
transformers with a chat template, or any model of an OpenAI-compatible server. The key of a server is read from the
environment variable named by config.tags.key.

The model sees the top samples of a latent: images with a heat map and a crop at the peak, or prompts with marks around
the words on which it fires. It answers with a label and, as multiple choice, a granularity:

    image   class, part, shape, texture, color, style, layout, none
    text    word, phrase, topic, syntax, style, none

Then it sees held-out samples one by one, without marks, and decides whether the label applies. The score is the
balanced accuracy of these answers: the mean of the accuracies on firing and on silent samples. Chance is 0.5.

config.tags.scores adds two harder tests (Paulo et al., arXiv 2410.13928). hard: neighbors of the latent fire on the
silent samples, so a label that is too broad fails. fuzzing, for texts: half of the time the words on which the latent
fires are marked, otherwise as many other words, and the model decides whether the label describes the marked words. It
uses top samples that the model has not seen, so config.interpret.top must exceed config.tags.images by 8 or more.

The command writes tags.parquet next to the results, one row per latent; existing rows of other latents are kept. Every
answer is saved in runs/<name>/tags_cache.jsonl. Rerun the command to continue a stopped run; no question is sent
twice. Answers that cannot be parsed are null, and their number is printed.
"""

import dataclasses
import math
import multiprocessing.pool
import pathlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from revelio_jax import files
from revelio_jax.cli import parse
from revelio_jax.config import Config, TagsConfig
from revelio_jax.errors import InputError, require
from revelio_jax.interpret.latents import results
from revelio_jax.interpret.latents.results import Results
from revelio_jax.interpret.tags import answers, evidence, questions
from revelio_jax.interpret.tags.answers import AnswerCache, VisionLanguageModel
from revelio_jax.interpret.tags.endpoint import open_endpoint
from revelio_jax.interpret.tags.evidence import LatentEvidence
from revelio_jax.interpret.wilson import Z, wilson

RANDOM = "random"
ENOUGH = 10  # smallest number of latents for an interval of the mean score
FLAGS = {
    "latents": (RANDOM, "numbers of latents, for example 3,17; random: config.tags.latents random latents that fire")
}
SCHEMA = pyarrow.schema(
    {
        "latent": pyarrow.int32(),
        "label": pyarrow.string(),
        "granularity": pyarrow.string(),
        "score": pyarrow.float64(),
        "score_low": pyarrow.float64(),
        "score_high": pyarrow.float64(),
        "held_out": pyarrow.int32(),
        **{f"{kind}_{name}": pyarrow.float64() for kind in ("hard", "fuzzing") for name in ("score", "low", "high")},
        "model": pyarrow.string(),
    }
)


@dataclasses.dataclass(frozen=True)
class Tag:
    """A row of tags.parquet, and the number of held-out answers that are neither yes nor no (``unclear``)."""

    latent: int
    label: str | None
    granularity: str | None
    score: float | None
    score_low: float | None
    score_high: float | None
    held_out: int
    model: str
    unclear: int
    hard_score: float | None = None
    hard_low: float | None = None
    hard_high: float | None = None
    fuzzing_score: float | None = None
    fuzzing_low: float | None = None
    fuzzing_high: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class TaggingRun:
    """The new tags of a run, and the cache with the answers that they are based on."""

    results: Results
    tags: tuple[Tag, ...]
    answers: AnswerCache
    seconds: float


def tag(config: Config, latents: Sequence[int] = ()) -> TaggingRun:
    """Tag ``latents``, or config.tags.latents random ones, and write tags.parquet.

    Raise InputError before the first question if an input does not fit, or later if the model fails. The tags of
    finished latents are also written if the model fails and on Ctrl-C.
    """
    run_results = results.load(_folder(config))
    latents = _check_latents(run_results, latents) or evidence.random_latents(run_results, config.tags.latents)
    latent_evidence = evidence.open_evidence(run_results, config.extract)
    stop = threading.Event()
    model = _model(config, stop)
    cache = AnswerCache(pathlib.Path(config.run or run_results.folder.parent, answers.NAME), model, stop)

    def tag_one(latent: int) -> Tag:
        options = config.tags
        return tag_latent(latent_evidence, cache, model.name, latent, options)

    tags, started = [], time.perf_counter()
    try:
        finished = _in_parallel(tag_one, latents, model.parallel)
        for finished_tag in tqdm(finished, "tags", len(latents), unit="latent", dynamic_ncols=True):
            tags.append(finished_tag)
    finally:
        stop.set()  # other threads send no further questions
        if tags:
            write(run_results, tags)
    return TaggingRun(run_results, tuple(tags), cache, time.perf_counter() - started)


def tag_latent(
    latent_evidence: LatentEvidence, cache: AnswerCache, model: str, latent: int, options: TagsConfig
) -> Tag:
    """Ask all questions about a latent: show config.tags.images top samples, then score on config.tags.held_out."""
    kind, has_maps = latent_evidence.kind, latent_evidence.has_maps
    shown = latent_evidence.top_samples(latent, options.images)
    label = granularity = None
    if shown:
        label = questions.read_label(cache.ask(questions.label_question(kind, shown, has_maps), latent))
        question = questions.granularity_question(kind, shown, has_maps, latent)
        granularity = questions.read_granularity(cache.ask(question, latent), kind, latent)
    scores: dict[str, tuple[float | None, float | None, float | None]] = {}
    counts, unclear = dict.fromkeys(options.scores, 0), 0
    for name in options.scores if label else ():
        if name == "fuzzing":
            samples = latent_evidence.fuzzed_samples(latent, shown, options.held_out)
        else:
            samples = latent_evidence.held_out_samples(latent, shown, options.held_out, hard=name == "hard")
        verdicts: list[tuple[bool, bool | None]] = []
        for sample, fires in samples:
            question = (
                questions.fuzzing_question(label or "", sample)
                if name == "fuzzing"
                else questions.applies_question(kind, label or "", sample)
            )
            verdicts.append((fires, questions.read_applies(cache.ask(question, latent))))
        clear = [(fires, applies) for fires, applies in verdicts if applies is not None]
        scores[name], counts[name] = score(clear), len(clear)
        unclear += len(verdicts) - len(clear)
    nothing = None, None, None
    return Tag(
        latent,
        label,
        granularity,
        *scores.get("detection", nothing),
        counts.get("detection", 0),
        model,
        unclear,
        *scores.get("hard", nothing),
        *scores.get("fuzzing", nothing),
    )


def score(verdicts: Sequence[tuple[bool, bool]]) -> tuple[float | None, float | None, float | None]:
    """Return the balanced accuracy of pairs (fires, applies) and its 95 % interval, or None with too few of one kind.

    The interval joins the Wilson intervals of the two accuracies as in Newcombe 1998, "Interval estimation for the
    difference between independent proportions", method 10, applied to half of a sum.
    """
    shares = []
    for kind in (True, False):
        right = [applies == fires for fires, applies in verdicts if fires == kind]
        if len(right) < evidence.FEWEST:
            return None, None, None
        shares.append((sum(right) / len(right), *wilson(sum(right) / len(right), len(right))))
    mean = sum(share for share, _, _ in shares) / 2
    below = math.hypot(*(share - low for share, low, _ in shares)) / 2
    above = math.hypot(*(high - share for share, _, high in shares)) / 2
    return mean, max(0.0, mean - below), min(1.0, mean + above)


def write(run_results: Results, tags: Sequence[Tag]) -> None:
    """Write tags.parquet in one step; existing rows of other latents are kept."""
    old_tags = run_results.tags()
    rows = {row["latent"]: row for row in old_tags.to_pylist()} if old_tags else {}
    rows |= {tag.latent: dataclasses.asdict(tag) for tag in tags}
    columns = {name: [rows[latent].get(name) for latent in sorted(rows)] for name in SCHEMA.names}
    with files.replacing(run_results.folder / "tags.parquet") as part:
        pyarrow.parquet.write_table(pyarrow.table(columns, SCHEMA), part)


def _in_parallel(tag_one: Callable[[int], Tag], latents: Sequence[int], parallel: int) -> Iterator[Tag]:
    """Yield the tags of all latents in the order in which they are finished."""
    if parallel == 1:
        yield from map(tag_one, latents)
        return
    with multiprocessing.pool.ThreadPool(min(parallel, len(latents))) as threads:
        yield from threads.imap_unordered(tag_one, latents)


def _folder(config: Config) -> pathlib.Path:
    if not config.run:
        raise InputError("config.run is not set; set it to the folder of the run, for example runs/mini_sd")
    files.check_writable(config.run, "config.run")
    return results.folder_of(config.run, config.interpret.sae)


def _check_latents(run_results: Results, latents: Sequence[int]) -> list[int]:
    """Return the latents sorted and without repeats. Raise InputError if one is out of range."""
    count = run_results.summary["latents"]
    for latent in latents:
        if not 0 <= latent < count:
            raise InputError(
                f"--latents: latent {latent} is out of range; {run_results.folder} has latents 0-{count - 1}"
            )
    return sorted(set(latents))


def _model(config: Config, stop: threading.Event) -> VisionLanguageModel:
    options = config.tags
    if not options.model:
        raise InputError(
            "config.tags.model is not set; set it to the hub id or folder of an image-text-to-text model, or to the "
            "name of a model at config.tags.endpoint"
        )
    if options.endpoint:
        return open_endpoint(options, stop)
    require("transformers", "steer", "config.tags.model")
    from revelio_jax.interpret.tags.local_model import open_model  # imports torch, which an endpoint does not need

    return open_model(options, config.model.device)


def parse_latents(text: str) -> list[int]:
    """Return the latents of the flag --latents, or [] for random latents. Raise InputError if it is malformed."""
    if text == RANDOM:
        return []
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise InputError(f"--latents is {text!r}; it must be numbers separated by commas, for example 3,17") from error


def summary(run: TaggingRun) -> str:
    """Return the summary that the command prints."""
    tags, summary = run.tags, run.results.summary
    lines = [
        f"{summary['name']}, {summary['site']}: {len(tags):,} latents, {run.answers.requested:,} new answers "
        f"in {run.seconds:.1f} s, {run.answers.reused:,} answers reused",
    ]
    kinds = Counter(tag.granularity for tag in tags if tag.granularity)
    total = sum(kinds.values())
    if total:
        shares = ", ".join(f"{kind} {n / total:.0%}" for kind, n in kinds.most_common())
        lines.append(f"granularity: {shares}")
    for name, field in (("score", "score"), ("hard score", "hard_score"), ("fuzzing score", "fuzzing_score")):
        scores = [value for tag in tags if (value := getattr(tag, field)) is not None]
        if scores:
            lines.append(f"mean {name} {_mean(scores)} of {len(scores):,} latents, chance is 0.50")
    missing = {
        "latents without a label": sum(tag.label is None for tag in tags),
        "latents without a granularity": sum(tag.granularity is None for tag in tags),
        "labels without a score (too few samples or clear answers)": sum(
            tag.label is not None and tag.score is None for tag in tags
        ),
        "answers neither yes nor no": sum(tag.unclear for tag in tags),
    }
    lines += [f"{name}: {count:,}" for name, count in missing.items() if count]
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    """Return the mean and, for at least ENOUGH values, its 95 % normal interval."""
    mean = sum(values) / len(values)
    if len(values) < ENOUGH:
        return f"{mean:.2f}"
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = Z * math.sqrt(variance / len(values))
    return f"{mean:.2f} ({max(0.0, mean - half):.2f}-{min(1.0, mean + half):.2f})"


def main(argv: Sequence[str]) -> None:
    """Run ``revelio tags`` with the arguments ``argv``."""
    config, flags = parse(["revelio_jax.interpret.tags", *argv], __doc__, **FLAGS)
    run = tag(config, parse_latents(flags["latents"]))
    print(summary(run))
    print(f"tags: {run.results.folder / 'tags.parquet'}")
