"""Weights, adapters and vocabularies that change: encoded texts are encoded again, and only then."""

import contextlib
import copy

import pytest
import torch

from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.stored_weights import plain_tensors
from revelio_jax.steering import encoder as encoders
from revelio_jax.steering import weights
from tests.helpers.steering import OFFLOADS

TEXT, DENOISER = "clip.layer.1", "unet.up_blocks.1.attentions.0"
SMALL = {"height": 8, "width": 8, "num_inference_steps": 2}
CONCEPT = "red apple"


@pytest.fixture(scope="session")
def lora_files(sd, tmp_path_factory):
    """Two LoRAs of the tiny SD pipeline, in files: of the text encoder only, and of the U-Net only."""
    peft = pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers

    torch.manual_seed(0)
    files = {}
    for part, targets in (("text_encoder", ["q_proj", "v_proj"]), ("unet", ["to_q", "to_v"])):
        model = copy.deepcopy(getattr(sd, part))
        model.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))
        layers = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(model))
        layers = {name: 3 * tensor for name, tensor in layers.items()}
        files[part] = str(tmp_path_factory.mktemp(part))
        StableDiffusionPipeline.save_lora_weights(files[part], **{f"{part}_lora_layers": layers})
    return files


def lora_steps(pipe, file):
    """Change the adapters of a pipeline step by step; yield the name of each change."""
    pipe.load_lora_weights(file, adapter_name="a")
    yield "load_lora_weights"
    pipe.set_adapters(["a"], [0.25])
    yield "set_adapters with another weight"
    pipe.fuse_lora(lora_scale=0.5)
    yield "fuse_lora"
    pipe.unfuse_lora()
    yield "unfuse_lora"
    pipe.load_lora_weights(file, adapter_name="b")
    pipe.set_adapters("b")
    yield "set_adapters to another adapter"
    pipe.set_adapters(["a", "b"], [0.7, 0.6])
    yield "set_adapters with both"
    pipe.delete_adapters("a")
    yield "delete_adapters"
    pipe.disable_lora()
    yield "disable_lora"
    pipe.enable_lora()
    yield "enable_lora"
    pipe.unload_lora_weights()
    yield "unload_lora_weights"


@torch.no_grad()
def edit_steps(pipe, part):
    """Change weights of a component step by step; yield the name of each change."""
    model = getattr(pipe, part)
    name, weight = next(
        (name, p) for name, p in model.named_parameters() if name.endswith("q_proj.weight") or "to_q" in name
    )
    weight.mul_(1.5)
    yield "in place"
    weight.data.mul_(1.5)
    yield "in place, without the version counter"
    weight.data = weight.data * 0.5
    yield "another tensor of values"
    weight.data[1, 2] += 1.0
    yield "one number"
    weight.data = weight.data.flip(0)
    yield "rows in another order"
    module = model.get_submodule(name.removesuffix(".weight"))
    module.weight = torch.nn.Parameter(weight + 1.0)
    yield "another parameter"
    model.to(torch.float64).to(torch.float32)  # exact, so not a change
    setattr(pipe, part, copy.deepcopy(model))
    next(getattr(pipe, part).parameters()).add_(1.0)
    yield "another component"


def check(pipe, make_steerer, run, site, steps, sampling=None):
    """Check after every change that a steerer encodes and steers as one that never saw the old weights."""
    kept = make_steerer(pipe, site)
    with kept.attach(pipe, {CONCEPT: 5.0}, sampling=sampling) as attached:
        previous = kept.encoder.encode(pipe, CONCEPT, sampling=sampling)
        for step in steps:
            steered = run(pipe, guided=False)
            attached.set_strength(CONCEPT, 0.0)
            with make_steerer(pipe, site).attach(pipe, {CONCEPT: 5.0}, sampling=sampling):
                assert torch.equal(run(pipe, guided=False), steered), step
            attached.set_strength(CONCEPT, 5.0)
            concept = kept.encoder.encode(pipe, CONCEPT, sampling=sampling)
            fresh = make_steerer(pipe, site).encoder.encode(pipe, CONCEPT, sampling=sampling)
            assert torch.equal(concept.pre_codes, fresh.pre_codes), step
            assert not torch.equal(concept.pre_codes, previous.pre_codes), step
            assert kept.encoder.encode(pipe, CONCEPT, sampling=sampling) is concept
            previous = concept


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_a_text_is_encoded_again_after_every_edit_of_weights(own, make_steerer, run, part):
    site, sampling = (TEXT, None) if part == "text_encoder" else (DENOISER, SMALL)
    pipe = own("sd")
    # Hooks belong to the old component, so a replaced one is an error.
    steps = (step for step in edit_steps(pipe, part) if step != "another component")
    check(pipe, make_steerer, run, site, steps, sampling)


def test_a_denoisers_text_is_encoded_again_when_its_text_encoder_changes(own, make_steerer, run):
    pipe = own("sd")
    check(pipe, make_steerer, run, DENOISER, edit_steps(pipe, "text_encoder"), SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_a_text_is_encoded_again_after_every_change_of_a_lora(own, lora_files, make_steerer, run, part):
    site, sampling = (TEXT, None) if part == "text_encoder" else (DENOISER, SMALL)
    pipe = own("sd")
    check(pipe, make_steerer, run, site, lora_steps(pipe, lora_files[part]), sampling)


def test_the_scale_of_a_lora_in_a_call_also_scales_it_for_the_concept(own, lora_files, make_steerer, run):
    pipe = own("sd")
    pipe.load_lora_weights(lora_files["text_encoder"], adapter_name="a")
    with make_steerer(pipe, TEXT).attach(pipe, {CONCEPT: 5.0}):
        scaled = run(pipe, cross_attention_kwargs={"scale": 0.3})
        whole = run(pipe)
        pipe.set_adapters("a", 0.3)
        torch.testing.assert_close(run(pipe), scaled)
    assert not torch.equal(whole, scaled)


def test_nothing_is_encoded_again_without_a_change(own, make_steerer, run, monkeypatch):
    pipe = own("sd")
    steerers = {TEXT: make_steerer(pipe, TEXT), DENOISER: make_steerer(pipe, DENOISER)}
    for steerer in steerers.values():
        steerer.encoder.encode(pipe, CONCEPT, sampling=SMALL)
    for name in ("encode_concept", "encode_sampled"):
        monkeypatch.setattr(encoders, name, lambda *_, **__: pytest.fail("encoded again"))
    with contextlib.ExitStack() as stack:
        for steerer in steerers.values():
            stack.enter_context(steerer.attach(pipe, {CONCEPT: 5.0}, sampling=SMALL))
        run(pipe)
        run(pipe, ["a cat"], guided=False)
    next(pipe.text_encoder.parameters()).data.mul_(2)
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        steerers[TEXT].encoder.encode(pipe, CONCEPT)


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_calls_and_offloading_leave_the_fingerprint(own, run, family, offload):
    pipe = own(family)
    site = {"sd": DENOISER, "sdxl": "unet.down_blocks.1.attentions.0", "flux": "flux.double.0.image"}[family]
    points = hook_points.resolve_joined(pipe, site)
    before = weights.fingerprint(pipe, points)
    run(pipe)
    assert weights.fingerprint(pipe, points) == before
    offload(pipe)
    assert weights.fingerprint(pipe, points) == before
    run(pipe)
    assert weights.fingerprint(pipe, points) == before


def inversion(width: int, vectors: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(vectors, width, generator=torch.Generator().manual_seed(seed))


def test_textual_inversions_of_several_vectors_are_noticed(own, make_steerer, run):
    pipe = own("sd")

    def steps():
        for vectors, seed in ((1, 0), (3, 1), (3, 2)):  # the last one changes values only
            pipe.load_textual_inversion({"<red>": inversion(16, vectors, seed)}, token="red")
            yield f"{vectors} vectors, seed {seed}"
            pipe.unload_textual_inversion()

    check(pipe, make_steerer, run, TEXT, steps())


def test_textual_inversions_of_two_encoders_are_noticed(own, make_steerer, run):
    pipe = own("sdxl")
    assert pipe.tokenizer is not pipe.tokenizer_2

    def steps():
        for number, width in (("", 16), ("_2", 8)):
            encoder, tokenizer = getattr(pipe, f"text_encoder{number}"), getattr(pipe, f"tokenizer{number}")
            pipe.load_textual_inversion(
                {"red": inversion(width, 2, 0)}, token="red", text_encoder=encoder, tokenizer=tokenizer
            )
            yield f"text_encoder{number}"

    check(pipe, make_steerer, run, "clip_l.layer.1+clip_g.layer.1", steps())


def test_a_concept_in_the_pooled_vector_follows_the_encoder_that_computes_it(own, make_steerer, run):
    pipe = own("flux")
    with make_steerer(pipe, "t5.block.1").attach(pipe, {CONCEPT: 5.0}, pooled=True):
        run(pipe)
        next(pipe.text_encoder.parameters()).data.mul_(1.5)
        steered = run(pipe)
    with make_steerer(pipe, "t5.block.1").attach(pipe, {CONCEPT: 5.0}, pooled=True):
        assert torch.equal(run(pipe), steered)


def test_latents_for_names_each_vector_of_a_textual_inversion(own, make_steerer):
    pipe = own("sd")
    pipe.load_textual_inversion({"<toy>": inversion(16, 3, 0)}, token="<toy>")
    steerer = make_steerer(pipe, TEXT)
    rows = steerer.latents_for(pipe, "<toy> cat", top=48)
    tokens = {row["position"]: row["token"] for row in rows}
    assert {tokens[position] for position in (1, 2, 3) if position in tokens} <= {"<toy>", "<toy>_1", "<toy>_2"}
    assert set(tokens) & {1, 2, 3}
    assert tokens.get(4, "cat</w>") == "cat</w>"


def test_checksums_depend_on_every_bit_and_not_on_the_layout():
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool):
        x = (100 * torch.randn(37, 53, generator=torch.Generator().manual_seed(0))).to(dtype)
        plain = weights.checksum(x)
        assert weights.checksum(x.clone()) == plain
        assert weights.checksum(x.t().contiguous().t()) == plain
        assert weights.checksum(torch.cat([x[:1, :1].flatten(), x.flatten()])[1:]) == plain  # not aligned
        changed = x.clone()
        changed[17, 31] = not changed[17, 31] if dtype == torch.bool else changed[17, 31] + 1
        assert weights.checksum(changed) != plain
        assert weights.checksum(x[:36]) != plain
    rows = torch.randn(4, 64)  # of 256 bytes
    assert weights.checksum(rows[[2, 3, 0, 1]]) != weights.checksum(rows)


def test_a_quantized_tensor_is_read_through_its_parts():
    """torchao keeps the values in inner tensors; GGUF redefines what functions return."""

    class Pair:
        def __init__(self, *parts):
            self.first, self.second = parts

        def __tensor_flatten__(self):
            return ["first", "second"], None

    class Redefined(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise AssertionError(func)

    first, second = torch.zeros(2), torch.ones(3)
    parts = dict(plain_tensors("weight", Pair(first, second)))
    assert {name: len(part) for name, part in parts.items()} == {"weight.first": 2, "weight.second": 3}
    ((name, part),) = plain_tensors("weight", second.as_subclass(Redefined))
    assert (name, type(part)) == ("weight", torch.Tensor)
    assert weights.checksum(part) == weights.checksum(second)
