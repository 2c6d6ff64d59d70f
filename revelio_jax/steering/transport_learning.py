"""Learn how the activations of a prompt change if a concept is removed from it or added to it.

Each prompt with the concept is matched with a similar prompt that has another value of the concept's label and the same
other labels. A ridge regression predicts the change of every token from the latents that fire on it and from its
position. So content that both prompts share stays as it is. For the opposite direction, prompts without the concept
are matched with prompts that have it.

N prompts, T tokens, D width, F latents, K latents that the regression reads.
"""

import random
import typing

import torch

from revelio_jax.pipelines import hook_points
from revelio_jax.steering import prompt_pairs
from revelio_jax.steering.concept import hidden_states, tokenize, tokenizer_of
from revelio_jax.steering.labels import LabeledPrompt
from revelio_jax.steering.sae import Sae
from revelio_jax.steering.transport import Change, Transport

SOURCES, CANDIDATES = 450, 2500  # prompts that are matched, and prompts that they are matched with
READ = 512  # largest number of latents that the regression reads
# Penalty of the regression, in units of the mean square of a firing latent: a latent needs about this number of
# tokens before its change counts. Without it, latents of rare words learn the words of their single match.
PENALTY = 30.0


def learn_transport(
    pipe: typing.Any, site: str, sae: Sae, labeled: list[LabeledPrompt], column: str, value: str
) -> Transport | None:
    """Learn both changes of the concept ``column=value`` from labeled prompts at a text encoder.

    Return None if no prompt has another value of the column. Prompts that leave the column out also learn the addition.
    """
    with_concept = [row for row in labeled if row[column] == value]
    without = [row for row in labeled if row[column] not in (value, "")]
    unlabeled = [row for row in labeled if not row[column]]
    if not with_concept or not without:
        return None
    axis_D = _mean(pipe, site, with_concept) - _mean(pipe, site, without)
    sources = _draw(without, SOURCES // 3) + _draw(unlabeled, SOURCES - SOURCES // 3)
    return Transport(
        removal=_learn_change(pipe, site, sae, _draw(with_concept, SOURCES), without, column, -axis_D),
        addition=_learn_change(pipe, site, sae, sources, with_concept, column, axis_D),
    )


def _learn_change(
    pipe: typing.Any,
    site: str,
    sae: Sae,
    rows: list[LabeledPrompt],
    candidates: list[LabeledPrompt],
    column: str,
    axis_D: torch.Tensor,
) -> Change:
    """Return the change from prompts to their matches among the candidates, on the side of ``axis_D``."""
    component = hook_points.resolve(pipe, site.partition("+")[0]).component  # joined encoders share positions
    candidates = _draw(candidates, CANDIDATES)
    texts, candidate_texts = [row["prompt"] for row in rows], [row["prompt"] for row in candidates]
    x_NTD = hidden_states(pipe, site, texts)
    ids_NT, candidate_ids_MT = (
        tokenize(pipe, component, part, x_NTD.shape[1]).input_ids for part in (texts, candidate_texts)
    )
    groups = prompt_pairs.similar_candidates(ids_NT, candidate_ids_MT, rows, candidates, column)
    used = sorted({i for group in groups for i in group})
    y_MTD = hidden_states(pipe, site, [candidate_texts[i] for i in used])
    index = {i: n for n, i in enumerate(used)}
    groups = [[index[i] for i in group] for group in groups]
    matched = prompt_pairs.choose_one_side(y_MTD.mean(1), groups, axis_D)
    ids_of_matches = candidate_ids_MT[[used[n] for n in matched]]
    aligned_NT = prompt_pairs.align(ids_NT, ids_of_matches, tokenizer_of(pipe, component).pad_token_id)
    y_NTD = torch.take_along_dim(y_MTD[matched], aligned_NT[..., None].to(y_MTD.device), dim=1)
    return fit_change(sae, x_NTD, y_NTD - x_NTD)


def fit_change(sae: Sae, x_NTD: torch.Tensor, change_NTD: torch.Tensor, penalty: float = PENALTY) -> Change:
    """Fit the change of activations from their latents and positions by ridge regression."""
    n, length, _ = x_NTD.shape
    codes_NTF = sae.codes(x_NTD)
    square_F = codes_NTF.square().sum((0, 1))
    penalty_latents = penalty * square_F.sum() / (codes_NTF != 0).sum().clamp_min(1)
    by_latent_FD = torch.einsum("ntf,ntd->fd", codes_NTF, change_NTD)
    explained_F = by_latent_FD.square().sum(1) / (square_F + penalty_latents)  # by each latent alone
    latents = explained_F.argsort(descending=True)[:READ].sort().values
    codes_NTK = codes_NTF[..., latents]
    by_position_TK = codes_NTK.sum(0)
    gram = torch.zeros(len(latents) + length, len(latents) + length, device=x_NTD.device, dtype=torch.float64)
    gram[: len(latents), : len(latents)] = torch.einsum("ntk,ntl->kl", codes_NTK, codes_NTK)
    gram[len(latents) :, : len(latents)] = by_position_TK
    gram[: len(latents), len(latents) :] = by_position_TK.T
    gram.diagonal()[: len(latents)] += penalty_latents
    gram.diagonal()[len(latents) :] += n + penalty
    target = torch.cat([by_latent_FD[latents], change_NTD.sum(0)]).double()
    solution = torch.linalg.solve(gram, target).float()
    return Change(latents, solution[: len(latents)].contiguous(), solution[len(latents) :].contiguous())


def _mean(pipe: typing.Any, site: str, rows: list[LabeledPrompt]) -> torch.Tensor:
    """Return the mean activation over prompts and positions, [D]."""
    return hidden_states(pipe, site, [row["prompt"] for row in _draw(rows, SOURCES)]).mean((0, 1))


def _draw(rows: list[LabeledPrompt], most: int) -> list[LabeledPrompt]:
    """Return at most ``most`` of the rows, drawn at random with a fixed seed."""
    return random.Random(0).sample(rows, min(len(rows), most))
