"""SAFREE: equations and prompt embeddings against NumPy in float64, in both modes, and whole images."""

import copy

import numpy as np
import pytest
import torch

from revelio_jax.baselines.safree import Safree
from revelio_jax.baselines.safree.denoiser import PromptFilter, filtering
from revelio_jax.baselines.safree.equations import (
    away_from_concept,
    basis,
    filtered_steps,
    reattend,
    triggers,
)
from revelio_jax.errors import InputError
from tests.revelio_jax.baselines.conftest import PHRASES, PROMPTS, SAMPLING, SEEDS

MODES = ["paper", "released"]


def projector(columns_DN: np.ndarray) -> np.ndarray:
    """Return C (C^T C)^+ C^T = C C^+, which does not square the condition number."""
    return columns_DN @ np.linalg.pinv(columns_DN)


def reference(x_TD, masked_ND, concept_ND, mode: str, alpha: float = 0.01, bound: int = 10, k=2.5, m=5.333):
    """Return the changed embeddings, whether each token is a trigger, and the number of steps."""
    concept, prompt, identity = projector(concept_ND.T), projector(masked_ND.T), np.eye(x_TD.shape[1])
    distances = [np.linalg.norm((identity - concept) @ row) for row in masked_ND]
    bounds = [(1 + alpha) * np.mean(np.delete(distances, i)) for i in range(len(distances))]
    is_trigger = np.greater(distances, bounds) if mode == "paper" else np.greater_equal(distances, bounds)
    order = prompt @ (identity - concept) if mode == "paper" else (identity - concept) @ prompt
    projected = (order @ x_TD.T).T
    changed = x_TD.copy()
    for i in np.flatnonzero(is_trigger):
        changed[i + 1] = projected[i + 1]
    rows = slice(0, len(masked_ND) + 2)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x_TD[rows], projected[rows], strict=True)]
    beta = 1 - np.mean(cosines)
    if mode == "paper":
        return changed, is_trigger, round(bound / (1 + np.exp(-beta)))
    return changed, is_trigger, round(bound / (1 + np.exp(-2 * k * (10 * beta - m)))) + 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(5))
def test_the_equations_are_those_of_numpy(mode, seed):
    random = np.random.default_rng(seed)
    x, masked, concept = random.normal(size=(9, 8)), random.normal(size=(5, 8)), random.normal(size=(2, 8))
    concept = np.concatenate([concept, concept[:1]])  # a phrase given twice
    masked += 3 * concept[1] * random.integers(0, 2, (5, 1))
    changed, is_trigger, steps = reference(x, masked, concept, mode)
    assert is_trigger.any()
    assert not is_trigger.all()
    tensors = [torch.from_numpy(array) for array in (x, masked, concept)]
    concept_basis = basis(tensors[2])
    assert len(concept_basis) == 2
    np.testing.assert_array_equal(triggers(tensors[1], concept_basis, 0.01, mode).numpy(), is_trigger)
    projected = away_from_concept(tensors[0], concept_basis, basis(tensors[1]), mode)
    positions = 1 + np.flatnonzero(is_trigger)
    np.testing.assert_allclose(projected.numpy()[positions], changed[positions], atol=1e-12)
    calibration = None if mode == "paper" else (2.5, 5.333)
    assert filtered_steps(tensors[0][:7], projected[:7], 10, calibration) == steps


def test_the_modes_differ_in_the_order_of_the_projections():
    random = np.random.default_rng(0)
    x, masked, concept = (torch.from_numpy(random.normal(size=(n, 8))) for n in (9, 5, 2))
    results = [away_from_concept(x, basis(concept), basis(masked), mode) for mode in MODES]
    assert (results[0] - results[1]).abs().max() > 0.1
    np.testing.assert_allclose((results[1] @ basis(concept).T).numpy(), 0, atol=1e-12)


def test_equal_distances_are_triggers_in_the_released_code_only():
    axes = torch.eye(5, dtype=torch.float64)  # the distances are 1 without rounding
    found = [triggers(axes[1:], basis(axes[:1]), 0.0, mode).tolist() for mode in MODES]
    assert found == [[False] * 4, [True] * 4]


@pytest.mark.parametrize("count", [0, 1])
def test_prompts_of_less_than_two_tokens(count):
    rows, concept = torch.ones(count, 4, dtype=torch.float64), basis(torch.eye(4)[:1])
    assert triggers(rows, concept, 0.01, "paper").tolist() == [True] * count
    assert triggers(rows, concept, float("inf"), "paper").tolist() == [False] * count


def reattended(changed: np.ndarray, original: np.ndarray, scale: float) -> np.ndarray:
    spectra = [np.fft.fftshift(np.fft.fft2(x), axes=(-2, -1)) for x in (changed, original)]
    height, width = changed.shape[-2:]
    for row in (height // 2 - 1, height // 2):
        for column in (width // 2 - 1, width // 2):
            low, other = (spectrum[..., row, column] for spectrum in spectra)
            low[np.abs(low) > np.abs(other)] *= scale
    return np.fft.ifft2(np.fft.ifftshift(spectra[0], axes=(-2, -1))).real


@pytest.mark.parametrize("size", [(8, 8), (6, 5), (2, 2)])
def test_reattention_is_that_of_numpy(size):
    random = np.random.default_rng(0)
    changed, original = (random.normal(size=(2, 3, *size)) for _ in range(2))
    found = reattend(torch.from_numpy(changed), torch.from_numpy(original), 0.2)
    np.testing.assert_allclose(found.numpy(), reattended(changed, original, 0.2), atol=1e-12)
    assert np.abs(found.numpy() - changed).max() > 0.01
    same = torch.from_numpy(changed).float()
    assert torch.equal(reattend(same, same, 0.2), same)


def texts_of(pipe, prompts) -> np.ndarray:
    """Return the pipeline's prompt embeddings."""
    encoded = pipe.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    return encoded[0].detach().numpy()


def pooled(pipe, rows) -> np.ndarray:
    """Return pooled vectors of token ids, one row at a time."""
    encoder = getattr(pipe, "text_encoder_2", pipe.text_encoder)
    name = "text_embeds" if hasattr(pipe, "text_encoder_2") else "pooler_output"
    with torch.no_grad():
        return np.concatenate([encoder(torch.tensor([row]))[name].numpy().astype(np.float64) for row in rows])


def expected_texts(pipe, prompt: str, mode: str) -> tuple[np.ndarray, int]:
    """Return changed embeddings of a prompt, and for how many steps."""
    tokens = pipe.tokenizer(prompt).input_ids
    cut = [tokens[:i] + ([] if mode == "paper" else [0]) + tokens[i + 1 :] for i in range(1, len(tokens) - 1)]
    concept = pooled(pipe, [pipe.tokenizer(phrase).input_ids for phrase in PHRASES])
    x = texts_of(pipe, [prompt])[0].astype(np.float64)
    start = 16 if hasattr(pipe, "text_encoder_2") else 0
    changed, is_trigger, steps = reference(x[:, start:], pooled(pipe, cut), concept, mode)
    assert is_trigger.any()
    return np.concatenate([x[:, :start], changed], axis=1), steps


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_the_denoiser_gets_the_embeddings_of_the_equations(family, mode, request, run):
    pipe, given = request.getfixturevalue(family), []

    def record(_unet, _args, kwargs, _output):
        given.append(kwargs["encoder_hidden_states"].numpy().copy())

    hook = pipe.unet.register_forward_hook(record, with_kwargs=True)
    try:
        run("safree", pipe, PROMPTS[:2], SEEDS[:2], mode=mode, sampling={"steps": 9, "batch_size": 2})
    finally:
        hook.remove()
    assert len(given) == 9
    plain = texts_of(pipe, PROMPTS[:2])
    for i, prompt in enumerate(PROMPTS[:2]):
        changed, steps = expected_texts(pipe, prompt, mode)
        if mode == "released" and family == "sdxl":
            steps = 9  # that code does not validate on SDXL
        for step, rows in enumerate(given):
            text = changed if step < steps else plain[i]
            np.testing.assert_allclose(rows[2 + i], text, atol=2e-4)
            if len(rows) == 6:  # the row of re-attention
                np.testing.assert_array_equal(rows[4 + i], plain[i])
        if mode == "paper":
            assert 0 < steps < 9
    extra = [len(rows) == 6 for rows in given]
    assert extra[0] == (mode == "paper" or family == "sd")
    negative = texts_of(pipe, ["glossy 3d, red"])[0] if mode == "released" else None
    if negative is not None:
        np.testing.assert_allclose(given[0][0], negative, atol=1e-5)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_without_triggers_images_are_those_of_the_plain_pipeline(family, request, run):
    pipe = request.getfixturevalue(family)
    np.testing.assert_array_equal(run("safree", pipe, alpha=float("inf")), run("plain", pipe))


def test_the_released_mode_without_triggers_is_the_negative_prompt(sd, run):
    images = run("safree", sd, mode="released", alpha=float("inf"), reattention=False)
    np.testing.assert_array_equal(images, run("negative_prompt", sd))
    with_row = run("safree", sd, mode="released", alpha=float("inf"))
    assert np.abs(images.astype(int) - with_row).max() <= 1


def test_the_paper_mode_needs_no_guidance(sd, run):
    sampling = {"guidance": 1.0}
    images = run("safree", sd, sampling=sampling)
    assert (images != run("plain", sd, sampling=sampling)).any()
    plain = run("plain", sd, sampling=sampling)
    np.testing.assert_array_equal(run("safree", sd, sampling=sampling, alpha=float("inf")), plain)


def test_reattention_changes_the_skip_connections_of_changed_rows_only(sd):
    """The U-Net with the hooks against the U-Net whose skip connections are replaced by hand."""
    random = torch.Generator().manual_seed(0)
    x, texts = torch.randn(1, 4, 8, 8, generator=random), torch.randn(2, 5, 16, generator=random)
    changed = torch.randn(1, 5, 16, generator=random)
    widths, scales, skips = [16, 8], (0.9, 0.2), {}

    def collect(name):
        def hook(_block, _args, kwargs):
            skips[name] = [kwargs["hidden_states"].shape[1], *kwargs["res_hidden_states_tuple"]]

        return hook

    def denoise(rows, embeddings):
        with torch.no_grad():
            return sd.unet(rows, 1, encoder_hidden_states=embeddings, return_dict=False)[0]

    prompts = PromptFilter(True, False, scales)
    prompts.start(1, lambda _texts: (changed, [1.0]))
    with filtering(sd.unet, prompts):
        found = denoise(x.repeat(2, 1, 1, 1), texts)
        after = denoise(x.repeat(2, 1, 1, 1), texts)
    assert found.shape == (2, 4, 8, 8)

    hooks = [block.register_forward_pre_hook(collect(i), with_kwargs=True) for i, block in enumerate(sd.unet.up_blocks)]
    plain = denoise(x.repeat(3, 1, 1, 1), torch.cat([texts[:1], changed, texts[1:]]))
    for hook in hooks:
        hook.remove()

    def replace(name):
        def hook(block, args, kwargs):
            width, *features = skips[name]
            for i, resnet in enumerate(block.resnets):
                row = features[-1 - i]
                new = reattended(row[1:2].double().numpy(), row[2:].double().numpy(), scales[widths.index(width)])
                features[-1 - i] = torch.cat([row[:1], torch.from_numpy(new).float(), row[2:]])
                width = resnet.out_channels
            return args, kwargs | {"res_hidden_states_tuple": tuple(features)}

        return hook

    hooks = [block.register_forward_pre_hook(replace(i), with_kwargs=True) for i, block in enumerate(sd.unet.up_blocks)]
    expected = denoise(x.repeat(3, 1, 1, 1), torch.cat([texts[:1], changed, texts[1:]]))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, expected[:2], atol=1e-5, rtol=1e-5)
    assert (found[1] - plain[1]).abs().max() > 1e-3
    torch.testing.assert_close(after, plain[[0, 2]], atol=1e-5, rtol=1e-5)


def test_pipelines_with_more_rows_are_refused(sd, run):
    import diffusers

    pag = diffusers.StableDiffusionPAGPipeline(
        **sd.components | {"unet": copy.deepcopy(sd.unet)}, requires_safety_checker=False, pag_applied_layers="mid"
    )
    with pytest.raises(InputError, match="gets 9 rows for 3 images"):
        run("safree", pag)


def test_defaults_are_those_published():
    settings = Safree()
    assert (settings.alpha, settings.steps_bound, settings.calibration) == (0.01, 10, (2.5, 5.333))
    assert settings.skip_scales == (0.9, 0.2)
    assert SAMPLING["steps"] < settings.steps_bound
