"""The fields of cfg.json and the tensors that are understood. All others are refused, because they may change latents.

``SAE_LENS`` and ``SPARSIFY`` hold the fields that the reader uses, and fields that only training uses or that name a
device. SAeUron writes sparsify's files with two fields for its own training: with ``batch_topk`` and ``sample_topk`` it
selects latents of a batch or an image together. Its scripts for images select the k largest of each position, as here.
"""

import pathlib
import typing
from collections.abc import Iterable, Mapping

from revelio_jax import checksums
from revelio_jax.errors import InputError
from revelio_jax.sae_folder.untrusted import one_line, read_header

SAE_LENS = frozenset(
    [
        *("architecture", "d_in", "d_sae", "k", "metadata"),
        *("apply_b_dec_to_input", "normalize_activations", "rescale_acts_by_decoder_norm", "reshape_activations"),
        *("device", "dtype"),
        *("aux_loss_coefficient", "decoder_init_norm", "use_sparse_activations"),
        *("l0_coefficient", "l0_warm_up_steps", "l1_coefficient", "l1_warm_up_steps", "lp_norm"),
        *("jumprelu_bandwidth", "jumprelu_init_threshold", "jumprelu_sparsity_loss_mode", "jumprelu_ste_to_input"),
        *("jumprelu_tanh_scale", "pre_act_loss_coefficient", "target_l0"),
    ]
)
SPARSIFY = frozenset(
    [
        *("activation", "d_in", "expansion_factor", "k", "metadata", "num_latents"),
        *("skip_connection", "signed", "transcode", "input_unit_norm"),
        *("multi_topk", "normalize_decoder", "batch_topk", "sample_topk"),
    ]
)
OFF = (None, False, 0, "", "none", [], {})
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


def cfg_sha256(config: Mapping[str, typing.Any]) -> str:
    """Return the sha256 of the fields of cfg.json that change latents; those of other fields may be edited."""
    values = {name: value for name, value in config.items() if name not in ("metadata", "device", "dtype")}
    metadata = config.get("metadata") or {}
    return checksums.of_json(values | {name: metadata.get(name) for name in ("site", "value")})


def refuse_unknown(file: pathlib.Path, config: dict[str, typing.Any], known: frozenset[str]) -> None:
    """Raise InputError if a field that is not known has a value other than off, for example false or none."""
    for name, value in config.items():
        if name not in known and value not in OFF:
            raise InputError(
                f"{file}: {one_line(name)} is {one_line(repr(value))}; this field is unknown and may change the "
                "latents; remove it if it does not"
            )


def refuse_extra_tensors(weights: pathlib.Path, known: Iterable[str]) -> None:
    """Raise InputError if a file of weights has tensors that are not used."""
    if extra := sorted(set(read_header(weights)[1]) - set(known)):
        raise InputError(
            f"{weights}: tensor {one_line(extra[0])} is unknown and may change the latents; expected only "
            f"{', '.join(known)}"
        )


def missing_message(folder: object, name: str, files: Iterable[str]) -> str:
    """Return the message for a folder without the file ``name``.

    If ``files``, the names of its files, include a pickle, the message shows how to convert it.
    """
    pickles = sorted(file for file in files if file.endswith(PICKLES))
    if not pickles:
        return f"{folder}/{name} is missing; revelio export writes an SAE folder"
    pickle = one_line(pickles[0])
    return (
        f"{folder}/{name} is missing, and {pickle} is not opened, because a pickle can run code; convert it with "
        f"safetensors.torch.save_file(torch.load({pickle!r}, weights_only=True), 'sae_weights.safetensors') and write "
        "cfg.json; docs/steering.md lists the names of tensors and fields"
    )
