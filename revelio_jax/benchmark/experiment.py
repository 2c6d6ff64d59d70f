"""Load an experiment on one concept: a pipeline, a steerer, prompts and a judge."""

import dataclasses
import datetime
import functools
import json
import pathlib
import random
import typing
from collections.abc import Sequence

import diffusers
import numpy as np
import torch
import tqdm
import transformers

from revelio_jax import files
from revelio_jax.benchmark.bench import check_column
from revelio_jax.benchmark.judges import load_judge
from revelio_jax.benchmark.judgment import Judge, detects
from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.inputs import prompt_settings
from revelio_jax.inputs.images import open_image
from revelio_jax.inputs.prompt_settings import PromptSettings
from revelio_jax.pipelines import hook_points, safety_checker
from revelio_jax.pipelines.loading import load_pipeline
from revelio_jax.pipelines.sampling import call_settings, sample
from revelio_jax.steering import Attachment, Steerer
from revelio_jax.steering.compatibility import same_model
from revelio_jax.steering.labels import LabeledPrompt, find_concept, parse_concept, read_labeled, spread
from revelio_jax.steering.learned_concepts import LearnedConcept, saved_concepts
from revelio_jax.steering.rules import resolve_rule

# Flags of the commands that load an experiment: default and help.
PROMPT_FLAG = ((), "prompt of one row of the strip; may be repeated; empty: five prompts with the concept")
CONCEPT_FLAG = (None, 'concept to steer: a text such as "glossy 3d", or a label such as "style=glossy 3d"')
SAE_FLAG = (None, "SAE folder or hub id; None: the export of the run")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A pipeline, a steerer, one concept and the prompts of its strip.

    ``label`` is (column, value) if ``text`` is the value of a label of the prompts, otherwise None. ``labeled`` are all
    prompts of the config. ``settings`` has an entry for each of ``prompts``. ``judge`` is None if none was set or
    requested, or if it cannot measure the concept.
    """

    config: Config
    text: str
    label: tuple[str, str] | None
    labeled: list[LabeledPrompt]
    prompts: list[str]
    settings: list[PromptSettings]
    judge: Judge | None
    steerer: Steerer
    pipe: typing.Any
    learned: dict[str, LearnedConcept]

    @property
    def folder(self) -> pathlib.Path:
        """Return the folder of images and results; it is created when first used."""
        folder = pathlib.Path(self.config.run or "", "steering")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def concept(self) -> tuple[str | None, str]:
        """Return the label column of the concept, None without one, and its text."""
        return self.label or (None, self.text)

    @property
    def rule(self) -> str:
        """Return the rule of the concept, with ``auto`` resolved."""
        return resolve_rule(self.config.steer.rule, self.learned.get(self.text))

    def attach(self, strength: float) -> Attachment:
        """Attach the concept at a strength, with the config's rule."""
        steer = self.config.steer
        return self.steerer.attach(
            self.pipe,
            {self.text: strength},
            rule=steer.rule,
            negative_branch=None if steer.negative_branch else False,
            pooled=steer.pooled or None,
            learned=self.learned,
            **self.limits,
        )

    @functools.cached_property
    def limits(self) -> dict[str, typing.Any]:
        """Return the arguments of Steerer.attach that limit steering to a region.

        Raise InputError if the mask cannot be read.
        """
        steer = self.config.steer
        if not hook_points.is_denoiser_point(self.steerer.site):
            return {"positions": steer.positions}
        return {
            "steps": steer.timesteps or None,
            "ramp": steer.ramp,
            "mask": _read_mask(steer.mask) if steer.mask else None,
            "sampling": call_settings(self.pipe, steer),
        }

    def sample(self, strengths: list[float], seed: int) -> list[list[np.ndarray | None]]:
        """Sample images [prompts][strengths], uint8 [height, width, 3], all from the same seed.

        An image that the pipeline's safety checker flags is None. If config.steer.seed_column is set, ``seed`` is added
        to the seed of each prompt of the file.
        """
        steer, columns = self.config.steer, []
        height, width = prompt_settings.one_size(self.settings)
        with tqdm.tqdm(total=len(self.prompts) * len(strengths), unit="image", desc="steering") as progress:
            for strength in strengths:
                with self.attach(strength):
                    sampled = sample(
                        self.pipe,
                        self.prompts,
                        [prompt_settings.added(each.seed, seed) for each in self.settings],
                        steps=steer.steps,
                        guidance=[each.guidance for each in self.settings],
                        height=height,
                        width=width,
                        batch_size=steer.batch_size,
                        progress=progress,
                    )
                columns.append([None if flag else x for x, flag in zip(sampled.images, sampled.flagged, strict=True)])
        return [list(row) for row in zip(*columns, strict=True)]

    def record(self, name: str, results: dict[str, typing.Any]) -> pathlib.Path:
        """Write ``results`` as a JSON file, with the settings and versions that produced them; return its path."""
        record = {
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "concept": self.text,
            "rule": self.rule,
            **results,
            "model": self.config.model.id,
            "site": self.steerer.site,
            "sae": self.steerer.sae.metadata,
            "settings": dataclasses.asdict(self.config.steer),
            "judge": self.judge and self.judge.record,
            "safety_checker": safety_checker.is_active(self.pipe),
            "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)},
        }
        file = self.folder / name
        files.write_text(file, json.dumps(record, indent=1) + "\n")
        return file


def load_experiment(
    config: Config,
    concept: str | None,
    prompts: Sequence[str],
    sae: str | None,
    with_judge: bool,
    needs_judge: bool = False,
) -> Experiment:
    """Load an experiment on a concept.

    ``concept`` is a text, or ``column=value`` of the labeled prompts. ``prompts`` defaults to five prompts with the
    concept, or to five of all prompts if the concept is not a label and the judge detects it. ``sae`` is a folder or
    hub id; None means the run's export. If ``with_judge`` is set, also load the config's judge, unless it cannot
    measure a concept that is not a label. Raise InputError if an input is missing or does not fit, or if
    ``needs_judge`` is set and there is no judge for the concept.
    """
    if not concept:
        raise InputError('--concept is missing; it is a text, for example --concept "glossy 3d"')
    steer = config.steer
    labeled = read_labeled(steer.prompts) if steer.prompts else []
    if line := prompt_settings.unused_seed_line(labeled, steer):
        print(line)
    label = parse_concept(concept, labeled) if "=" in concept else find_concept(concept, labeled)
    # Prompts of the command line have no row with settings of their own.
    defaults = PromptSettings(None, steer.guidance, steer.height, steer.width)
    settings = [defaults] * len(prompts)
    judge = load_judge(steer.judge, steer.judge_settings) if labeled and steer.judge and with_judge else None
    if judge and label:
        check_column(label[0], judge.columns)
    elif judge and not detects(judge):
        judge = None
    if not prompts:
        rows = _rows_with(label, labeled, detected=judge is not None)
        prompts, settings = [row["prompt"] for row in rows], prompt_settings.read(rows, steer)
    prompt_settings.one_size(settings)
    if needs_judge and not judge:
        if not labeled:
            raise InputError("config.steer.prompts is not set; it must be a file of prompts whose images are judged")
        raise InputError(f"--concept is {concept!r}; this judge can only measure a label of config.steer.prompts")
    if not config.run:
        raise InputError("config.run is not set; it must be the folder of a run, for example runs/mini_sd")
    files.check_writable(config.run, "config.run")
    steerer = Steerer.from_pretrained(sae or pathlib.Path(config.run, "export"))
    trained_on = steerer.sae.metadata.get("model_id")
    if trained_on and not same_model(trained_on, config.model.id or ""):
        raise InputError(f"config.model.id is {config.model.id!r}; the SAE was trained on {trained_on!r}")
    pipe, text = load_pipeline(config.model), label[1] if label else concept
    learned = saved_concepts(config.run)
    return Experiment(config, text, label, labeled, list(prompts), settings, judge, steerer, pipe, learned)


def _rows_with(label: tuple[str, str] | None, labeled: list[LabeledPrompt], detected: bool) -> list[LabeledPrompt]:
    """Return five prompts with a concept, and their labels; if it is ``detected`` and not a label, five of all prompts.

    Raise InputError for any other concept that is not a label.
    """
    if label is None and detected:
        return random.Random(1).sample(labeled, min(5, len(labeled)))
    if label is None:
        raise InputError(
            "--prompt is missing; only a concept that is a label of config.steer.prompts has default prompts"
        )
    column, value = label
    rows = [row for row in labeled if row[column] == value]
    rows = [row for row in rows if all(row.values())] or rows
    other = next((key for key in rows[0] if key not in ("prompt", column)), column)
    return spread(rows, other, 5, random.Random(1))


def _read_mask(file: str) -> torch.Tensor:
    """Return an image file as a mask float32 [height, width], 0 for black and 1 for white.

    Raise InputError if the file cannot be read.
    """
    try:
        with open_image(file) as image:
            return torch.from_numpy(np.asarray(image.convert("L"), np.float32) / 255)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"config.steer.mask is {file!r}, which cannot be read as an image: {error}") from error
