"""The rules against their definitions."""

import dataclasses

import torch

from revelio_jax import config
from revelio_jax.steering.concept import EncodedConcept, hidden_states, own_latents
from revelio_jax.steering.learned_concepts import LearnedConcept, file_name, save_learned, saved_concepts
from revelio_jax.steering.rules import AUTO, RULES, change_function, resolve_rule
from revelio_jax.steering.sae import load_sae
from revelio_jax.steering.transport import Change, Transport


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_config_allows_exactly_the_rules():
    assert (AUTO, *RULES) == config.RULES
    for rule in config.RULES:
        settings = config.default()
        settings.steer.rule = rule
        assert config.resolve(settings).steer.rule == rule


def test_auto_depends_on_whether_the_concept_is_learned():
    change = Change(torch.tensor([0]), torch.zeros(1, 8), torch.zeros(6, 8))
    swapped = LearnedConcept(torch.tensor([3]), torch.zeros(6, 64), 0.0)
    transported = dataclasses.replace(swapped, transport=Transport(change, change))
    kinds = (transported, swapped, None)
    assert [resolve_rule(AUTO, learned) for learned in kinds] == ["transport", "swap", "contrast"]
    assert [resolve_rule(rule, learned) for rule in RULES for learned in kinds] == [
        rule for rule in RULES for _ in kinds
    ]


def test_rules_follow_their_definitions(sae_folder, tensors):
    sae = load_sae(sae_folder)
    codes, empty = _random(6, 64).relu(), _random(6, 64, seed=1).relu()
    learned = LearnedConcept(torch.tensor([3, 5]), _random(6, 64, seed=4), 0.0)
    concept = EncodedConcept("c", codes, empty, learned)
    x = 4 * _random(2, 6, 128, seed=2)
    torch.testing.assert_close(change_function("paper", sae, concept)(x, -0.5), -0.5 * codes @ tensors["W_dec"])
    difference = (codes - empty).clamp(min=0)
    torch.testing.assert_close(change_function("contrast", sae, concept)(x, 2.0), 2 * difference @ tensors["W_dec"])
    z = sae.codes(x)
    wanted = z[..., 3, None] * tensors["W_dec"][3] + z[..., 5, None] * tensors["W_dec"][5]
    torch.testing.assert_close(change_function("gated", sae, concept)(x, -1.0), -wanted)


def test_gated_does_not_change_activations_without_its_latents(sae_folder):
    sae = load_sae(sae_folder)
    x = 4 * _random(2, 6, 128)
    silent = (sae.codes(x) == 0).all((0, 1)).nonzero().flatten()
    assert len(silent)
    learned = LearnedConcept(silent, _random(6, 64), 0.0)
    concept = EncodedConcept("c", torch.zeros(6, 64), torch.zeros(6, 64), learned)
    for rule in ("gated", "swap"):
        assert (change_function(rule, sae, concept)(x, -1.0) == 0).all()


def test_swap_removes_only_from_prompts_with_the_concept(sae_folder, tensors):
    sae = load_sae(sae_folder)
    x = 4 * _random(2, 6, 128)
    codes = sae.codes(x)
    at = int((codes[0].amax(0) - codes[1].amax(0)).argmax())  # stronger in the first prompt
    threshold = float(codes[0, :, at].max() + codes[1, :, at].max()) / 2
    difference = _random(6, 64, seed=5)
    learned = LearnedConcept(torch.tensor([at]), difference, threshold)
    function = change_function("swap", sae, EncodedConcept("c", difference, difference, learned))
    v_TD = difference @ tensors["W_dec"]
    torch.testing.assert_close(function(x, -2.0)[0], -2 * v_TD)
    assert (function(x, -2.0)[1] == 0).all()
    torch.testing.assert_close(function(x, 0.5)[1], 0.5 * v_TD)  # added to the prompt without the concept
    assert (function(x, 0.5)[0] == 0).all()


def test_own_latents_are_weak_on_the_empty_prompt():
    codes = torch.tensor([[5.0, 2.0, 0.0, 3.0], [0.0, 1.0, 9.0, 0.0]])
    empty = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 9.0, 0.0]])
    # Latent 0: 5 to 1; 1: 2 to 1, too little; 2: as strong on the empty prompt; 3: 3 to 0.
    assert own_latents(codes, empty).tolist() == [0, 3]
    assert own_latents(codes, empty, most=1).tolist() == [0]


def test_hidden_states_do_not_depend_on_the_batch_size(pipe):
    prompts = ["flat emoji of tiger", "", "a red apple"]
    hidden = hidden_states(pipe, "clip.layer.2", prompts, batch_size=2)
    tokens = pipe.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    with torch.inference_mode():
        wanted = pipe.text_encoder(tokens, output_hidden_states=True).hidden_states[3]
    torch.testing.assert_close(hidden, wanted)


def test_saved_concepts_are_read_by_their_text(tmp_path):
    assert saved_concepts(tmp_path) == {}
    (tmp_path / "steering").mkdir()
    for text in ("glossy 3d", "heart"):
        learned = LearnedConcept(torch.tensor([3, len(text)]), _random(6, 64), 0.25)
        save_learned(tmp_path / "steering" / f"{file_name(text)}.safetensors", text, learned)
    concepts = saved_concepts(tmp_path)
    assert list(concepts) == ["glossy 3d", "heart"]
    assert concepts["heart"].latents.tolist() == [3, 5]
    assert concepts["heart"].threshold == 0.25
    assert torch.equal(concepts["heart"].difference, _random(6, 64))
