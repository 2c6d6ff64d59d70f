"""Changes of the activations of a prompt that remove a concept from it or add it, as functions of its latents.

B prompts, T tokens, D width, F latents, K latents that a change reads.
"""

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Change:
    """A linear map from the latents and the position of a token to a change of its activation.

    ``latents`` [K] are the latents that it reads, ``of_latents_KD`` their changes for each unit of a latent, and
    ``of_positions_TD`` the changes at each position.
    """

    latents: torch.Tensor
    of_latents_KD: torch.Tensor
    of_positions_TD: torch.Tensor

    def __call__(self, codes_BTF: torch.Tensor) -> torch.Tensor:
        """Return the change [B, T, D] for codes."""
        return codes_BTF[..., self.latents] @ self.of_latents_KD + self.of_positions_TD

    def to(self, device: torch.device) -> "Change":
        """Return the change on a device."""
        return Change(*(tensor.to(device) for tensor in vars(self).values()))


@dataclasses.dataclass(frozen=True)
class Transport:
    """The change that removes a concept from a prompt with it, and the change that adds it to a prompt without it."""

    removal: Change
    addition: Change

    def to(self, device: torch.device) -> "Transport":
        """Return both changes on a device."""
        return Transport(self.removal.to(device), self.addition.to(device))
