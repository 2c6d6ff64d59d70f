"""Files of learned concepts: saved ones are read exactly, all others are refused in one line."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from revelio_jax.errors import InputError
from revelio_jax.steering.learned_concepts import LearnedConcept, load_learned, save_learned, saved_concepts

LEARNED = LearnedConcept(torch.tensor([3, 1]), torch.arange(20.0).reshape(4, 5), 0.5)


def test_saved_concepts_keep_their_tensors(tmp_path):
    (tmp_path / "steering").mkdir()
    none = LearnedConcept(torch.zeros(0, dtype=torch.int64), LEARNED.difference, 0.0)
    save_learned(tmp_path / "steering" / "a.safetensors", "glossy 3d", LEARNED)
    save_learned(tmp_path / "steering" / "b.safetensors", "flat", none)
    (tmp_path / "another").touch()  # other users can read it like any other file
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 1
    concepts = saved_concepts(str(tmp_path))
    assert set(concepts) == {"glossy 3d", "flat"}
    torch.testing.assert_close(concepts["glossy 3d"].latents, LEARNED.latents)
    torch.testing.assert_close(concepts["glossy 3d"].difference, LEARNED.difference)
    assert concepts["glossy 3d"].threshold == 0.5
    assert len(concepts["flat"].latents) == 0
    assert saved_concepts(str(tmp_path / "nowhere")) == {}


TENSORS = {"latents": LEARNED.latents, "difference": LEARNED.difference, "threshold": torch.tensor(0.5)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"latents": torch.tensor([5])}, "difference has latents 0-4"),
        ({"latents": torch.tensor([-1])}, "difference has latents 0-4"),
        ({"latents": torch.tensor([1.0])}, "latents is F32 [1]; allowed: I64 or I32"),
        ({"latents": torch.tensor([[1]])}, "latents is I64 [1, 1]"),
        ({"difference": torch.zeros(4)}, "difference is F32 [4]"),
        ({"difference": torch.zeros(4, 0)}, "difference is F32 [4, 0]"),
        ({"difference": torch.full((4, 5), torch.inf)}, "not finite"),
        ({"threshold": torch.zeros(1)}, "threshold is F32 [1]"),
        ({"threshold": None}, "threshold is missing"),
    ],
)
def test_a_file_of_other_shapes_is_refused(tmp_path, wrong, message):
    file = tmp_path / "concept.safetensors"
    save_file({k: t for k, t in (TENSORS | wrong).items() if t is not None}, file, {"text": "flat"})
    with pytest.raises(InputError) as error:
        load_learned(file)
    assert message in str(error.value)


def test_a_file_without_a_text_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "concept.safetensors")
    with pytest.raises(InputError, match="its metadata has no text"):
        load_learned(tmp_path / "concept.safetensors")


@hypothesis.settings(
    max_examples=300, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=4),
    end=st.none() | st.integers(0, 400),
)
def test_only_input_errors_come_out_of_mutated_files(tmp_path, edits, end):
    file = tmp_path / "concept.safetensors"
    save_learned(file, "flat", LEARNED)
    content = bytearray(file.read_bytes())
    for place, cut, put in edits:
        content[place : place + cut] = put
    file.write_bytes(content[:end])
    message = ""
    try:
        load_learned(file)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
