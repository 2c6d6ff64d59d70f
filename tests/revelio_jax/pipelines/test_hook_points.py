"""Hook points of every family and layout, on tiny pipelines with random weights."""

import re
import types

import pytest
import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points, hooks
from revelio_jax.pipelines.families import family_of

torch.set_num_threads(1)  # more threads only wait for each other on models this small


PROMPT = {"sd": "a cat", "sdxl": "a cat", "flux": "a cat", "dit": "goldfish"}


def denoise(pipe):
    """Run the denoiser once on fixed inputs and return a tensor."""
    family = family_of(pipe)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        conditioning = family.conditioning(pipe, PROMPT[family.name], 3.5, (8, 8))
        return family.denoiser_of(pipe)(**family.denoiser_arguments(latents, 3, conditioning)).sample


def run(pipe, point):
    """Run the component that holds the hook point."""
    if hook_points.is_denoiser_point(point.name):
        return denoise(pipe)
    with torch.no_grad():
        ids = torch.tensor([[18, 3, 4, 5, 19, 19], [18, 7, 19, 19, 19, 19]])
        return getattr(pipe, point.component)(ids).last_hidden_state


NAMES = {
    "sd": [
        *(f"clip.layer.{i}" for i in range(3)),
        "unet.mid_block",
        "unet.up_blocks.0",
        "unet.up_blocks.1",
        "unet.down_blocks.0.attentions.0",
        "unet.mid_block.attentions.0",
        "unet.up_blocks.1.attentions.0",
        "unet.up_blocks.1.attentions.1",
    ],
    "sdxl": [
        *(f"clip_l.layer.{i}" for i in range(3)),
        *(f"clip_g.layer.{i}" for i in range(3)),
        "unet.mid_block",
        "unet.up_blocks.0",
        "unet.up_blocks.1",
        "unet.down_blocks.1.attentions.0",
        "unet.mid_block.attentions.0",
        "unet.up_blocks.0.attentions.0",
        "unet.up_blocks.0.attentions.1",
    ],
    "flux": [
        *(f"clip.layer.{i}" for i in range(3)),
        *(f"t5.block.{i}" for i in range(3)),
        *(f"flux.double.{i}.{stream}" for i in range(2) for stream in ("text", "image")),
        *(f"flux.single.{i}.{stream}" for i in range(2) for stream in ("text", "image")),
    ],
    "dit": [f"dit.block.{i}" for i in range(3)],
}
WIDTHS = {"clip": 16, "clip_l": 16, "clip_g": 8, "t5": 16, "flux": 16, "dit": 16}
EVERY = [(kind, name) for kind, names in NAMES.items() for name in names]


@pytest.mark.parametrize("kind", NAMES)
def test_every_hook_point_of_a_family_is_listed(kind, request):
    pipe = request.getfixturevalue(kind)
    assert family_of(pipe).name == kind
    assert hook_points.point_names(pipe) == NAMES[kind]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_hook_point_reads_and_replaces_activations(kind, name, request):
    pipe = request.getfixturevalue(kind)
    point = hook_points.resolve(pipe, name)
    with hooks.capture(point) as outputs:
        plain = run(pipe, point)
    (hidden,) = outputs
    assert hidden.ndim == 3
    assert hidden.shape[0] == 2
    assert hidden.shape[2] == point.d
    assert point.d == WIDTHS.get(name.partition(".")[0], point.d)

    def replaced(function):
        remove = hooks.hook(point, function)
        out = run(pipe, point)
        remove()
        return out

    # The same values change nothing, bit for bit; other values change the output.
    torch.testing.assert_close(replaced(lambda h: h.clone()), plain, rtol=0, atol=0)
    changed = (replaced(lambda h: h + 5 * torch.randn_like(h)) != plain).any()
    assert changed != (name == "flux.single.1.text")  # FLUX drops the text after its last block
    torch.testing.assert_close(run(pipe, point), plain, rtol=0, atol=0)
    assert not point.module._forward_hooks


def test_positions_of_a_map_are_its_pixels_in_row_order():
    point = hooks.HookPoint("unet.mid_block", "unet", None, 2, is_map=True)
    output = torch.arange(2 * 2 * 3 * 4.0).reshape(2, 2, 3, 4)
    assert point.read(output).shape == (2, 12, 2)
    torch.testing.assert_close(point.read(output)[1, 5], output[1, :, 1, 1])
    torch.testing.assert_close(point.replace(output, point.read(output)), output)


def test_replacing_keeps_the_structure_of_the_output():
    hidden, other, new = torch.zeros(2, 3, 4), torch.ones(1), torch.full((2, 3, 4), 7.0)
    layer = hooks.HookPoint("clip.layer.0", "text_encoder", None, 4)
    assert layer.replace(hidden, new) is new
    assert layer.replace((hidden,), new) == (new,)
    t5_block = layer.replace((hidden, other, None), new)
    assert t5_block[0] is new
    assert t5_block[1] is other
    assert len(t5_block) == 3
    image = hooks.HookPoint("flux.double.0.image", "transformer", None, 4, output_index=1, needs_tuple=True)
    assert image.replace((other, hidden), new) == (other, new)
    assert layer.replace(hidden, new.to(torch.float64)).dtype == torch.float32


@pytest.mark.parametrize(("kind", "name"), [each for each in EVERY if hook_points.is_denoiser_point(each[1])])
def test_the_input_of_a_hook_point_is_the_output_of_the_block_before(kind, name, request):
    """This holds for both streams of FLUX."""
    pipe = request.getfixturevalue(kind)
    point = hook_points.resolve(pipe, name)
    seen = []
    handle = point.module.register_forward_hook(
        lambda _, args, kwargs, output: seen.append((point.read_input(args, kwargs), point.read(output))),
        with_kwargs=True,
    )
    before = re.sub("[12]", lambda number: str(int(number[0]) - 1), name) if kind in ("flux", "dit") else name
    with hooks.capture(hook_points.resolve(pipe, before)) as previous:
        denoise(pipe)
    handle.remove()
    ((inputs, outputs),) = seen
    assert inputs.ndim == outputs.ndim == 3
    assert inputs.shape[0] == 2
    if before != name:
        assert inputs.shape == outputs.shape
        torch.testing.assert_close(inputs, previous[0], rtol=0, atol=0)


def test_one_tensor_of_text_and_image_is_refused():
    point = hooks.HookPoint("flux.single.0.image", "transformer", None, 4, output_index=1, needs_tuple=True)
    with pytest.raises(InputError, match="one tensor"):
        point.read(torch.zeros(2, 3, 4))


def test_hook_points_of_transformers_4_resolve():
    """CLIPTextModel.text_model.encoder.layers, whose layers return tuples."""

    class OldLayer(torch.nn.Module):
        def forward(self, x):
            return (x + 1, None)

    layers = torch.nn.ModuleList([OldLayer(), OldLayer()])
    inner = types.SimpleNamespace(encoder=types.SimpleNamespace(layers=layers))
    model = type("CLIPTextModel", (types.SimpleNamespace,), {})
    old = model(text_model=inner, config=types.SimpleNamespace(hidden_size=4))
    point = hook_points.resolve(types.SimpleNamespace(text_encoder=old, unet=None), "clip.layer.1")
    assert point.module is layers[1]
    with hooks.capture(point) as outputs:
        layers[1](torch.zeros(2, 3, 4))
    assert (outputs[0] == 1).all()


def test_a_hook_runs_before_the_capture_hooks_of_transformers(sdxl):
    """Registered after it, a change would be missing from hidden_states, which SDXL reads."""
    ids = torch.tensor([[18, 3, 4, 5, 19, 19]])
    point = hook_points.resolve(sdxl, "clip_g.layer.1")
    with torch.no_grad():
        before = sdxl.text_encoder_2(ids, output_hidden_states=True).hidden_states[-2]
        remove = hooks.hook(point, lambda hidden: hidden + 1)
        after = sdxl.text_encoder_2(ids, output_hidden_states=True).hidden_states[-2]
        remove()
    torch.testing.assert_close(after, before + 1)


@pytest.mark.parametrize("name", ["clip.layer.3", "clip.layer.-1", "clip.layer.01", "t5.block.0", "clip", ""])
def test_an_unknown_name_is_refused_with_the_known_ones(sd, name):
    with pytest.raises(InputError) as error:
        hook_points.resolve(sd, name)
    assert repr(name) in str(error.value)
    assert "clip.layer.0-2, unet.mid_block, unet.up_blocks.0-1" in str(error.value)
    assert "unet.up_blocks.1.attentions.0-1" in str(error.value)


def test_consecutive_numbers_are_abbreviated():
    names = ["flux.double.0.text", "flux.double.0.image", "flux.double.1.text", "flux.double.1.image"]
    assert hook_points.abbreviate(names) == "flux.double.0-1.text, flux.double.0-1.image"
    assert hook_points.abbreviate([]) == ""


def test_an_object_that_is_not_a_pipeline_is_refused():
    with pytest.raises(InputError, match=r"SimpleNamespace is not a supported pipeline; supported: .*FluxPipeline"):
        family_of(types.SimpleNamespace(vae=None))
