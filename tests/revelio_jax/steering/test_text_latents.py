"""The latents that fire on a text but not on every prompt."""

import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.steering import Steerer
from revelio_jax.steering.concept import hidden_states

TEXT = "glossy 3d emoji of red apple"


@pytest.fixture
def steerer(sae_folder) -> Steerer:
    return Steerer.from_pretrained(sae_folder)


def test_rows_agree_with_the_codes(pipe, steerer):
    rows = steerer.latents_for(pipe, TEXT, top=10)
    codes, empty = steerer.sae.codes(hidden_states(pipe, steerer.site, [TEXT, ""]))
    ids = pipe.tokenizer(TEXT, padding="max_length", max_length=len(codes)).input_ids
    assert 0 < len(rows) <= 10
    for row in rows:
        latent, position = row["latent"], row["position"]
        assert row["value"] == float(codes[position, latent]) == float(codes[:, latent].max())
        assert row["empty"] == float(empty[:, latent].max())
        assert row["token"] == pipe.tokenizer.convert_ids_to_tokens(ids[position])
    more = [row["value"] - row["empty"] for row in rows]
    assert more == sorted(more, reverse=True)
    assert min(more) > 0
    beyond = torch.relu(codes.amax(0) - empty.amax(0))
    assert more == pytest.approx(beyond.topk(len(rows)).values.tolist())


def test_latents_of_the_empty_prompt_are_left_out(pipe, steerer):
    assert steerer.latents_for(pipe, "", top=5) == []
    more = steerer.latents_for(pipe, TEXT, top=1000)
    assert {row["latent"] for row in steerer.latents_for(pipe, TEXT, top=3)} <= {r["latent"] for r in more}
    codes, empty = steerer.sae.codes(hidden_states(pipe, steerer.site, [TEXT, ""]))
    assert len(more) == int((codes.amax(0) > empty.amax(0)).sum())


@pytest.mark.parametrize("top", [0, -1, 2.5, True])
def test_a_top_that_is_not_a_positive_integer_is_refused(pipe, steerer, top):
    with pytest.raises(InputError, match="positive whole number of latents"):
        steerer.latents_for(pipe, TEXT, top=top)
