"""The model of the step: bytes and collectives equal those of compiled programs, times follow from published rates."""

import dataclasses
import math

import jax
import pytest

from revelio_jax.config import Config, SaeConfig, TrainConfig
from revelio_jax.planning import advice, compiled_step, model
from revelio_jax.planning.chips import CHIPS
from revelio_jax.planning.hlo import Collective
from revelio_jax.planning.work import StepWork
from revelio_jax.sae import sharding

SMALL = 1500  # bytes of collectives that the model leaves out, such as sums of the loss

large = StepWork(
    Config(sae=SaeConfig(matmul_dtype="bfloat16", products="dense", k_aux=0), train=TrainConfig(batch_size=8192)),
    "a.layer.1",
    4096,
    65536,
    None,
)


def changed(work, sae=None, train=None):
    config = work.config
    config = dataclasses.replace(
        config, sae=dataclasses.replace(config.sae, **sae or {}), train=dataclasses.replace(config.train, **train or {})
    )
    return dataclasses.replace(work, config=config)


@pytest.mark.parametrize("mesh", [(1, 8), (2, 4), (8, 1), (1, 1)])
@pytest.mark.parametrize(
    "sae",
    [
        {"k": 8},
        {"k": 8, "products": "atomic"},
        {"k": 8, "multi_topk": 0.125, "prefixes": (0.5, 1.0)},
        {"architecture": "jumprelu"},
    ],
    ids=["topk", "slots", "multi_topk", "jumprelu"],
)
def test_the_compiled_step_has_the_arguments_and_collectives_of_the_model(mesh, sae):
    work = StepWork(
        Config(
            sae=SaeConfig(**{"k_aux": 0, "products": "dense", "matmul_dtype": "bfloat16"} | sae),
            train=TrainConfig(batch_size=64),
        ),
        "a",
        256,
        2048,
        None,
    )
    chip = CHIPS["h100"]
    devices = jax.devices()[: math.prod(mesh)]
    placed = sharding.make_mesh(*mesh, 64, 2048, devices)
    compiled = compiled_step.compile_mesh(work, placed, chip)
    estimate = model.estimate(work, mesh, chip)
    assert compiled.memory["arguments"] == estimate.memory["arguments"]

    def by_kind(collectives):
        total = {}
        for collective, times in collectives.items():
            if collective.bytes > SMALL and collective.chips > 1:
                key = collective.kind, collective.chips
                total[key] = total.get(key, 0) + times * collective.bytes
        return total

    expected = by_kind(estimate.collectives)
    found = by_kind(compiled.collectives)
    assert found.keys() == expected.keys()
    for key, bytes in found.items():
        assert bytes == pytest.approx(expected[key], rel=0.02), key


def test_the_encoder_and_adam_on_an_h100_take_the_time_of_their_operations_and_bytes():
    estimate = model.estimate(large, (1, 1), CHIPS["h100"])
    assert estimate.terms["encoder"] == pytest.approx(2 * 8192 * 4096 * 65536 / (0.8 * 989e12))
    assert estimate.terms["products"] == pytest.approx(4 * estimate.terms["encoder"])
    parameters = 2 * 4096 * 65536
    assert estimate.terms["optimizer"] == pytest.approx(46 * parameters / (0.9 * 3350e9), rel=0.01)
    assert estimate.terms["links"] == 0
    assert estimate.dead_s == 0
    assert estimate.roofs["HBM"] == pytest.approx(28 * parameters / 3350e9, rel=0.02)


def test_float32_products_of_a_gpu_run_at_half_the_rate_and_those_of_a_tpu_do_not():
    float32 = changed(large, sae={"matmul_dtype": "float32"})
    for kind, ratio in (("h100", 989 / 495), ("v5p", 1)):
        times = [model.estimate(work, (1, 1), CHIPS[kind]).terms["encoder"] for work in (float32, large)]
        assert times[0] / times[1] == pytest.approx(ratio)


def test_products_with_slots_cost_k_rows_and_those_with_matrices_all_latents():
    def products_s(latents, k, form):
        work = dataclasses.replace(changed(large, sae={"products": form, "k": k}), latents=latents)
        return model.estimate(work, (1, 1), CHIPS["h100"]).terms["products"]

    assert products_s(131072, 32, "dense") == pytest.approx(2 * products_s(65536, 32, "dense"))
    assert products_s(131072, 32, "atomic") == products_s(65536, 32, "atomic")
    assert products_s(65536, 64, "atomic") == pytest.approx(2 * products_s(65536, 32, "atomic"))
    # gradients of slots as whole products: half of the dense form, and the rows of decode and dots
    rows_s = 2 * 8192 * 32 * 4096 * 2 / (0.9 * 3350e9)  # bfloat16
    assert products_s(65536, 32, "sparse") == pytest.approx(products_s(65536, 32, "dense") / 2 + rows_s)


def test_auto_is_the_form_that_the_trainer_would_choose():
    def seconds(products, k, kind):
        return model.estimate(changed(large, sae={"products": products, "k": k}), (1, 1), CHIPS[kind]).seconds

    assert seconds("auto", 32, "h100") == seconds("sparse", 32, "h100") != seconds("dense", 32, "h100")
    assert seconds("auto", 512, "h100") == seconds("dense", 512, "h100") != seconds("sparse", 512, "h100")
    assert seconds("auto", 32, "v5p") == seconds("dense", 32, "v5p") != seconds("sparse", 32, "v5p")


@pytest.mark.parametrize(("form", "share"), [("dense", 1 / 8), ("atomic", (2 / 8 + 8) / 10)])
def test_splitting_rows_divides_the_products_with_own_rows_and_adds_gradients_or_rows_to_the_links(form, share):
    work = changed(large, sae={"products": form})
    whole, rows = (model.estimate(work, mesh, CHIPS["h100"]) for mesh in ((1, 1), (8, 1)))
    assert rows.terms["products"] == pytest.approx(whole.terms["products"] * share)
    gradients, gathered = 2 * 65536 * 4096 * 4, 8192 * (2 * 4096 + 3 * 32) * 4
    sent = 2 * 7 / 8 * gradients if form == "dense" else 7 / 8 * gathered
    assert rows.terms["links"] == pytest.approx(sent / 450e9)


def test_splitting_latents_divides_products_and_memory():
    dense = changed(large, sae={"products": "dense"})
    whole, latents = (model.estimate(dense, mesh, CHIPS["h100"]) for mesh in ((1, 1), (1, 8)))
    assert latents.terms["products"] == pytest.approx(whole.terms["products"] / 8)
    assert latents.terms["optimizer"] == pytest.approx(whole.terms["optimizer"] / 8, rel=0.01)
    assert latents.memory["gradients"] == whole.memory["gradients"] / 8
    assert latents.memory["codes"] < whole.memory["codes"] / 7


def test_collectives_between_nodes_are_as_fast_as_the_cards_of_the_chips_in_a_node():
    h100 = CHIPS["h100"]
    assert h100.link(8, 1) == 450e9
    assert h100.link(16, 1) == 8 * 50e9  # a ring through all cards of a node
    assert h100.link(2, 4) == 450e9  # chips 0 and 4 of a node
    assert h100.link(2, 8) == 50e9  # one chip in each of two nodes
    assert h100.link(4, 4) == 2 * 50e9
    assert CHIPS["v5p"].link(64, 4) == 600e9


def test_rows_from_the_host_bound_a_small_step():
    tiny = dataclasses.replace(changed(large, sae={"k": 1}), latents=16, d=16384)
    estimate = model.estimate(tiny, (1, 1), CHIPS["h100"])
    assert estimate.seconds == estimate.input_s == 4 * 8192 * 16384 / 64e9


def test_aux_k_adds_a_step_with_many_dead_latents():
    with_aux_k = model.estimate(changed(large, sae={"k_aux": 256}), (1, 8), CHIPS["h100"])
    plain = model.estimate(large, (1, 8), CHIPS["h100"])
    assert plain.seconds_dead == plain.seconds == with_aux_k.seconds
    assert with_aux_k.seconds_dead - plain.seconds > plain.terms["encoder"] + plain.terms["products"]


def test_collectives_of_the_model_are_in_rings():
    estimate = model.estimate(large, (1, 8), CHIPS["h100"])
    rows, values = 8192 * 4096 * 4, 8192 * 32 * 8 * 4
    expected = {Collective("all-gather", rows, 8): 1, Collective("all-gather", values, 8): 1}
    assert estimate.collectives == expected | {Collective("all-reduce", rows, 8): 1}
    sent = 7 / 8 * (rows + values) + 2 * 7 / 8 * rows
    assert estimate.terms["links"] == pytest.approx(sent / 450e9)


def lines(work, mesh, kind="h100", meshes=((1, 1),)):
    return advice.advise(work, meshes, mesh, CHIPS[kind])


def test_advice_names_single_changes_with_a_gain_and_disappears_once_followed():
    slow = changed(large, sae={"matmul_dtype": "float32"}, train={"batch_size": 512, "steps": 100})
    found = "\n".join(lines(slow, (1, 1)))
    times = [
        model.estimate(work, (1, 1), CHIPS["h100"]).seconds
        for work in (slow, changed(slow, train={"batch_size": 1024}))
    ]
    gain = 2 * times[0] / times[1]
    assert f"--config.train.batch_size=1024: {gain:.1f} x the rows/s by the model; 50 steps" in found
    assert "--config.sae.matmul_dtype=bfloat16" in "\n".join(lines(changed(slow, train={"batch_size": 8192}), (1, 1)))
    assert not any("matmul_dtype" in line for line in lines(large, (1, 1)))
    assert not any("matmul_dtype" in line for line in lines(slow, (1, 1), "v5p"))


def test_advice_names_a_faster_mesh():
    meshes = ((1, 8), (2, 4), (8, 1))
    assert any(line.startswith("advice: --mesh 1x8: ") for line in lines(large, (8, 1), meshes=meshes))
    assert not any("--mesh" in line for line in lines(large, (1, 8), meshes=meshes))


def test_advice_does_not_name_what_does_not_fit():
    wide = dataclasses.replace(large, latents=600_000)
    assert 0.9 < model.estimate(wide, (1, 1), CHIPS["h200"]).bytes / CHIPS["h200"].hbm < 1
    assert not any("batch_size" in line for line in lines(wide, (1, 1), "h200"))
