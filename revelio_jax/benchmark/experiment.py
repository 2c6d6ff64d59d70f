"""What the commands that draw a concept over strengths share: what they load, sample and record."""

import dataclasses
import datetime
import functools
import json
import os
import pathlib
import random
import typing

import diffusers
import numpy as np
import PIL.Image
import torch
import tqdm
import transformers

from revelio_jax.benchmark.judges import load_judge
from revelio_jax.benchmark.measurement import Judge
from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.sampling import sample, sampling_of
from revelio_jax.pipelines.whole import load_pipeline
from revelio_jax.steering import Attachment, Steerer
from revelio_jax.steering.compatibility import same_model
from revelio_jax.steering.labels import LabeledPrompt, find_concept, parse_concept, read_labeled, spread
from revelio_jax.steering.learned_concepts import LearnedConcept, saved_concepts
from revelio_jax.steering.rules import chosen


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A pipeline, a steerer and one concept.

    ``label`` is (column, value) where ``text`` is the value of a label of the prompts, ``judge`` what
    names labels of pictures; both are None where the config or the concept does not have them.
    """

    config: Config
    text: str
    label: tuple[str, str] | None
    labelled: list[LabeledPrompt]
    judge: Judge | None
    steerer: Steerer
    pipe: typing.Any
    learned: dict[str, LearnedConcept]

    @property
    def folder(self) -> pathlib.Path:
        """Where pictures and results go; made at its first use."""
        folder = pathlib.Path(self.config.run, "steering")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def rule(self) -> str:
        """How the text acts; never ``auto``."""
        return chosen(self.config.steer.rule, self.text in self.learned)

    def steering(self, strength: float) -> Attachment:
        """The concept at a strength, by the config's rule."""
        steer = self.config.steer
        return self.steerer.attach(
            self.pipe,
            {self.text: strength},
            rule=steer.rule,
            negative_branch=None if steer.negative_branch else False,
            pooled=steer.pooled or None,
            learned=self.learned,
            **self.where,
        )

    @functools.cached_property
    def where(self) -> dict[str, typing.Any]:
        """What the config limits steering to, as arguments of Steerer.attach. Raises InputError."""
        steer = self.config.steer
        if not hook_points.is_denoiser_site(self.steerer.site):
            return {"positions": steer.positions}
        return {
            "steps": steer.timesteps or None,
            "ramp": steer.ramp,
            "mask": _brush(steer.mask) if steer.mask else None,
            "sampling": sampling_of(self.pipe, steer),
        }

    def pictures(self, prompts: list[str], strengths: list[float], seed: int) -> list[list]:
        """Pictures [prompts][strengths]; every prompt keeps its seed over the strengths."""
        steer, columns = self.config.steer, []
        with tqdm.tqdm(total=len(prompts) * len(strengths), unit="picture", desc="steering") as progress:
            for strength in strengths:
                with self.steering(strength):
                    columns.append(
                        sample(
                            self.pipe,
                            prompts,
                            [seed] * len(prompts),
                            steps=steer.steps,
                            guidance=steer.guidance,
                            height=steer.height,
                            width=steer.width,
                            batch_size=steer.batch_size,
                            progress=progress,
                        )
                    )
        return [list(row) for row in zip(*columns, strict=True)]

    def record(self, name: str, results: dict[str, typing.Any]) -> pathlib.Path:
        """Write ``results``, with all that made them, as a JSON file; whole or not at all."""
        made = {
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "concept": self.text,
            "rule": self.rule,
            **results,
            "model": self.config.model.id,
            "site": self.steerer.site,
            "sae": self.steerer.sae.metadata,
            "settings": dataclasses.asdict(self.config.steer),
            "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)},
        }
        file = self.folder / name
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(made, indent=1) + "\n")
        os.replace(partial, file)
        return file


def _brush(file: str) -> torch.Tensor:
    """A picture as a mask [height, width] from 0, black, to 1, white. Raises InputError."""
    try:
        with PIL.Image.open(file) as picture:
            return torch.from_numpy(np.asarray(picture.convert("L"), np.float32) / 255)
    except (OSError, PIL.UnidentifiedImageError) as error:
        raise InputError(f"config.steer.mask is {file!r}, which is no picture: {error}") from error


def prepare(
    config: Config, concept: str, prompts: list[str], sae: str, judged: bool, must_judge: bool = False
) -> tuple[Experiment, list[str]]:
    """Load what a concept needs; returns it with the prompts to draw. Raises InputError.

    ``concept`` is a text or ``column=value`` of the labelled prompts, ``prompts`` are those asked for, by
    default five with the concept; ``sae`` is a folder or hub id, by default the run's export. A judge is
    loaded where ``judged`` and there is one to a label; where ``must_judge``, that there is none is wrong.
    """
    if not concept:
        raise InputError('--concept is missing; it is a text, as --concept "glossy 3d"')
    labelled = read_labeled(config.steer.prompts) if config.steer.prompts else []
    label = parse_concept(concept, labelled) if "=" in concept else find_concept(concept, labelled)
    drawn = list(prompts) or _prompts_with(label, labelled)
    judge = load_judge(config.steer.judge) if label and config.steer.judge and judged else None
    if must_judge and not judge:
        raise InputError(f"--concept is {concept!r}, which labels no prompts: a judge cannot tell it")
    steerer = Steerer.from_pretrained(sae or pathlib.Path(config.run, "export"))
    trained_on = steerer.sae.metadata.get("model_id")
    if trained_on and not same_model(trained_on, config.model.id):
        raise InputError(f"config.model.id is {config.model.id!r}; the SAE was trained on {trained_on!r}")
    pipe = load_pipeline(config.model)
    text, learned = label[1] if label else concept, saved_concepts(config.run)
    return Experiment(config, text, label, labelled, judge, steerer, pipe, learned), drawn


def _prompts_with(label: tuple[str, str] | None, labelled: list[LabeledPrompt], n: int = 5) -> list[str]:
    if label is None:
        raise InputError("--prompt is missing; it may be left out for a concept that labels prompts")
    column, value = label
    rows = [row for row in labelled if row[column] == value and all(row.values())]
    other = next((key for key in rows[0] if key not in ("prompt", column)), column)
    return [row["prompt"] for row in spread(rows, other, n, random.Random(1))]
