"""Pipelines of the matrix in docs/steering.md: strength 0 changes no bit, only rows of the prompt are steered."""

import pytest
import torch

from tests.helpers import ROOT
from tests.helpers.steered_pipelines import (
    DENOISER_POINT,
    ROWS,
    TEXT_POINT,
    built,
    conditioning,
    first_step,
    generate,
    steered_rows,
    table,
)
from tests.helpers.steering import record_outputs

CONCEPT = "red apple"


@pytest.mark.parametrize("name", ROWS)
def test_a_text_hook_point_steers_the_prompt_only(tiny, make_steerer, name):
    row = ROWS[name]
    pipe = built(name, tiny(row.family))
    cls, steerer = type(pipe), make_steerer(pipe, TEXT_POINT[row.family])
    with conditioning(pipe) as plain_passes:
        plain = generate(pipe, row)
    with steerer.attach(pipe, {CONCEPT: 0.0}, rule="paper") as attached:
        assert torch.equal(generate(pipe, row), plain)
        attached.set_strength(CONCEPT, 1.0)
    with (
        steerer.attach(pipe, {CONCEPT: 1.0}, rule="paper", negative_branch=False) as attached,
        conditioning(pipe) as passes,
    ):
        steered = generate(pipe, row)
        report = attached.report()[steerer.site]
    changed = (first_step(passes, row) != first_step(plain_passes, row)).flatten(1).any(1)
    assert changed.tolist() == steered_rows(row)
    assert (steered != plain).any()
    assert report.passes == 1
    assert report.rows == 2
    assert report.relative_change > 0
    assert torch.equal(generate(pipe, row), plain)
    assert type(pipe) is cls


@pytest.mark.parametrize("name", ROWS)
def test_a_denoiser_hook_point_steers_the_prompt_only(tiny, make_steerer, name):
    row = ROWS[name]
    pipe = built(name, tiny(row.family))
    site = DENOISER_POINT[row.family]
    cls, steerer = type(pipe), make_steerer(pipe, site)
    with record_outputs(pipe, site) as plain_passes:
        plain = generate(pipe, row)
    latents = dict.fromkeys(range(48), -1.0)
    with steerer.attach(pipe, dict.fromkeys(latents, 0.0)):
        assert torch.equal(generate(pipe, row), plain)
    with steerer.attach(pipe, latents) as attached, record_outputs(pipe, site) as passes:
        steered = generate(pipe, row)
        report = attached.report()[site]
    changed = (first_step(passes, row) != first_step(plain_passes, row)).flatten(1).any(1)
    assert changed.tolist() == steered_rows(row)
    assert (steered != plain).any()
    assert report.passes > 0
    assert report.relative_change > 0
    assert torch.equal(generate(pipe, row), plain)
    assert type(pipe) is cls


def test_the_matrix_in_the_docs_has_these_pipelines():
    text = (ROOT / "docs" / "steering.md").read_text()
    assert "\n" + "\n".join(table()) + "\n" in text
