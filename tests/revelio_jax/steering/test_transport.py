"""Changes between matched prompts: matching, alignment, the regression, the rule, and what it does to real prompts."""

import dataclasses

import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.steering import prompt_pairs
from revelio_jax.steering.concept import EncodedConcept, hidden_states
from revelio_jax.steering.labels import read_labeled
from revelio_jax.steering.latents import split
from revelio_jax.steering.learned_concepts import LearnedConcept, load_learned, save_learned
from revelio_jax.steering.rules import change_function
from revelio_jax.steering.sae import Sae
from revelio_jax.steering.transport import Change, Transport
from revelio_jax.steering.transport_learning import fit_change, learn_transport
from tests.helpers import MINIATURES


def _row(prompt: str, style: str, category: str) -> dict[str, str]:
    return {"prompt": prompt, "style": style, "category": category}


def _sae(latents: int, d: int, k: int) -> Sae:
    W_dec_FD = torch.nn.functional.normalize(torch.randn(latents, d, generator=torch.Generator().manual_seed(1)), dim=1)
    return Sae(W_dec_FD.T, torch.zeros(latents), W_dec_FD, torch.zeros(d), k, {"site": "clip.layer.2"})


def test_other_labels_count_more_than_tokens():
    ids = torch.tensor([[1, 2, 3, 0]])
    candidate_ids = torch.tensor([[1, 2, 4, 0], [1, 5, 4, 0], [1, 5, 6, 0]])
    rows = [_row("a", "flat", "heart")]
    candidates = [_row("b", "noto", "face"), _row("c", "flat", "face"), _row("d", "noto", "face")]
    assert prompt_pairs.similar_candidates(ids, candidate_ids, rows, candidates, "category") == [[1]]


def test_equally_similar_candidates_are_chosen_on_one_side():
    means = torch.tensor([[3.0, 0.1], [-3.0, 0.0], [2.5, 0.0], [-2.0, 0.2]])
    groups = [[0, 1], [2, 3]]
    assert prompt_pairs.choose_one_side(means, groups, torch.tensor([1.0, 0.0])) == [0, 2]
    assert prompt_pairs.choose_one_side(means, groups, torch.tensor([-1.0, 0.0])) == [1, 3]


def test_alignment_follows_the_order_of_tokens():
    pad = 0
    ids = torch.tensor([[7, 8, 1, 2, pad, pad, pad, pad]])
    replaced = torch.tensor([[9, 1, 2, pad, pad, pad, pad, pad]])  # 7 and 8 become 9
    assert prompt_pairs.align(ids, replaced, pad)[0, :4].tolist() == [0, 0, 1, 2]
    inserted = prompt_pairs.align(replaced, torch.tensor([[9, 1, 2, 5, pad, pad, pad, pad]]), pad)[0]
    assert inserted.tolist()[:3] == [0, 1, 2]
    assert 3 in inserted.tolist()[3:]  # the new token is written to a position of the padding


def test_the_regression_recovers_a_change_that_depends_on_latents_and_positions():
    sae = _sae(32, 16, 32)
    x = torch.randn(200, 5, 16, generator=torch.Generator().manual_seed(0))
    of_latents, of_positions = torch.randn(32, 16), torch.randn(5, 16)
    change = sae.codes(x) @ of_latents + of_positions
    fitted = fit_change(sae, x, change, penalty=1e-3)
    torch.testing.assert_close(fitted(sae.codes(x)), change, atol=1e-2, rtol=1e-2)
    shrunk = fit_change(sae, x, change, penalty=1e6)
    assert shrunk(sae.codes(x)).norm() < 0.1 * change.norm()


def test_a_negative_weight_acts_on_prompts_with_the_concept_and_a_positive_one_on_others():
    sae = _sae(32, 16, 8)
    x = 4 * torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    codes = sae.codes(x)
    at = int((codes[0].amax(0) - codes[1].amax(0)).argmax())  # stronger in the first prompt
    threshold = float(codes[0, :, at].max() + codes[1, :, at].max()) / 2
    removal = Change(torch.tensor([at]), torch.ones(1, 16), torch.zeros(5, 16))
    addition = Change(torch.tensor([at]), torch.zeros(1, 16), torch.full((5, 16), 2.0))
    learned = LearnedConcept(torch.tensor([at]), torch.zeros(5, 32), threshold, Transport(removal, addition))
    function = change_function("transport", sae, EncodedConcept("c", codes[0], codes[0], learned))
    torch.testing.assert_close(function(x, -1.5)[0], 1.5 * codes[0, :, at, None].expand(5, 16))
    assert (function(x, -1.5)[1] == 0).all()
    assert (function(x, 0.5)[0] == 0).all()
    torch.testing.assert_close(function(x, 0.5)[1], torch.ones(5, 16))
    per_row = torch.tensor([-1.5, 0.5])[:, None, None]
    torch.testing.assert_close(function(x, per_row), torch.stack([function(x, -1.5)[0], function(x, 0.5)[1]]))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_learned_change_moves_unseen_prompts_to_their_matches(miniature, family):
    pipe, site = miniature(family), {"sd": "clip.layer.2", "flux": "t5.block.2"}[family]
    labeled = read_labeled(str(MINIATURES / family / "prompts.csv"))[::40]
    unseen = ["glossy 3d emoji of red apple", "a tiger, glossy 3d style"]
    wanted = ["flat emoji of red apple", "a tiger, flat style"]
    labeled = [row for row in labeled if row["name"] not in ("red apple", "tiger") and row["style"] != "noto"]
    with_concept, _ = split(labeled, "style", "glossy 3d")
    sae = dataclasses.replace(_sae(512, 128, 20), b_dec_D=hidden_states(pipe, site, with_concept).mean((0, 1)))
    transport = learn_transport(pipe, site, sae, labeled, "style", "glossy 3d")
    learned = LearnedConcept(torch.arange(512), torch.zeros(1, 512), -1.0, transport)  # every prompt has the concept
    concept = EncodedConcept("glossy 3d", sae.W_enc_DF, sae.W_enc_DF, learned)
    x, y = hidden_states(pipe, site, unseen), hidden_states(pipe, site, wanted)
    change = change_function("transport", sae, concept)(x, -1.0)
    similarity = torch.cosine_similarity(change.mean(1), y.mean(1) - x.mean(1))
    assert (similarity > 0.2).all()


def test_a_concept_without_a_learned_change_is_refused_in_one_line(pipe, make_steerer):
    with pytest.raises(InputError, match="'red' has no change learned from labeled prompts") as error:
        make_steerer(pipe, "clip.layer.2").attach(pipe, {"red": -1.0}, rule="transport")
    assert "\n" not in str(error.value)


def test_prompts_of_one_value_teach_no_change(pipe):
    rows = [_row("flat cat", "flat", "animal"), _row("a cat", "", "animal")]
    assert learn_transport(pipe, "clip.layer.2", _sae(8, 128, 4), rows, "style", "flat") is None


CHANGE = Change(torch.tensor([4, 0]), torch.rand(2, 3), torch.rand(4, 3))
OTHER = Change(*(tensor.clone() for tensor in vars(CHANGE).values()))  # safetensors saves no tensor twice
SAVED = LearnedConcept(torch.tensor([3, 1]), torch.rand(4, 5), 0.5, Transport(CHANGE, OTHER))


def test_saved_changes_are_read_exactly(tmp_path):
    save_learned(tmp_path / "a.safetensors", "flat", SAVED)
    _, loaded = load_learned(tmp_path / "a.safetensors")
    assert loaded.transport is not None
    for change in vars(loaded.transport).values():
        for name, tensor in vars(CHANGE).items():
            torch.testing.assert_close(getattr(change, name), tensor, rtol=0, atol=0)
    save_learned(tmp_path / "b.safetensors", "flat", dataclasses.replace(SAVED, transport=None))
    assert load_learned(tmp_path / "b.safetensors")[1].transport is None  # like files of earlier versions


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"latents": torch.tensor([5, 0])}, "latents of a change are out of range"),
        ({"of_latents_KD": torch.zeros(3, 3)}, "different shapes"),
        ({"of_latents_KD": torch.zeros(2, 2)}, "different shapes"),
        ({"of_positions_TD": torch.zeros(5, 3)}, "of_positions_TD is F32"),
        ({"of_positions_TD": torch.full((4, 3), torch.nan)}, "not finite"),
    ],
)
def test_malformed_changes_are_refused(tmp_path, wrong, message):
    change = dataclasses.replace(OTHER, **wrong)
    save_learned(tmp_path / "a.safetensors", "flat", dataclasses.replace(SAVED, transport=Transport(CHANGE, change)))
    with pytest.raises(InputError, match=message):
        load_learned(tmp_path / "a.safetensors")
