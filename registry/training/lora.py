"""An encoder with a low-rank update and a head on its states, as one torch network with its training step.

Never changes the encoder's own weights. Importing this module imports torch; only training does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from registry.bundles.manifest_schema import DOWN, UP
from registry.training.head import AttentiveNetwork, HeadOutput, head_loss
from registry.training.samples import Targets

_CLIP = 1.0
_PEFT = {".lora_A.default.weight": DOWN, ".lora_B.default.weight": UP}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """The loss of one update, the share of right classes, and the mean cosine of the vectors."""

    loss: float
    accuracy: float
    cosine: float


class JointNetwork(nn.Module):  # type: ignore[misc]
    """A network that computes vectors and a head's outputs in one pass; before training it equals the frozen encoder.

    The update is LoRA (Hu et al., arXiv 2106.09685) on every matrix of the layers, with a scale of 1.
    """

    def __init__(
        self,
        folder: Path,
        head: AttentiveNetwork,
        *,
        token_layers: Sequence[int],
        rank: int,
        dropout: float = 0.0,
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from transformers import AutoModel

        super().__init__()
        encoder = AutoModel.from_pretrained(
            folder,
            attn_implementation="sdpa",
            add_pooling_layer=False,
            local_files_only=True,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=0.0,
        )
        matrices = [
            name
            for name, part in encoder.named_modules()
            if name.startswith("encoder.") and isinstance(part, nn.Linear)
        ]
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=matrices)
        self.encoder = inject_adapter_in_model(config, encoder)
        self.head = head
        self._token_layers = tuple(token_layers)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, HeadOutput]:
        """Compute unit vectors [b, d] and the head's outputs for token ids [b, t] and mask [b, t]."""
        states = self.encoder(
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=True
        ).hidden_states
        share = mask.unsqueeze(-1).float()
        pooled = (states[-1].float() * share).sum(1) / share.sum(1)
        tokens = torch.cat([states[layer] for layer in self._token_layers], dim=-1)
        rated, rating, unrated = self.head(tokens, mask)
        return functional.normalize(pooled, dim=1), (rated.float(), rating.float(), unrated.float())

    def optimiser(
        self, *, learning_rate: float, head_learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """Return an optimiser of the update, without weight decay, and the head; each group has its `highest` rate."""
        groups = [
            {"params": list(self.update().values()), "highest": learning_rate, "weight_decay": 0.0},
            {"params": list(self.head.parameters()), "highest": head_learning_rate},
        ]
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=weight_decay)

    def step(
        self,
        optimiser: torch.optim.Optimizer,
        *,
        share: float,
        inputs: tuple[NDArray[np.int64], NDArray[np.bool_]],
        targets: Targets,
        vectors: NDArray[np.float32],
        rating_weight: float,
        space_weight: float,
    ) -> StepMetrics:
        """Update the weights on one batch, at a share of the highest rates; `vectors` [b, d] are the targets."""
        for group in optimiser.param_groups:
            group["lr"] = share * group["highest"]
        self.train()
        ids, mask = (torch.from_numpy(array) for array in inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoded, outputs = self(ids, mask)
        cosine = (encoded * torch.from_numpy(vectors)).sum(dim=1).mean()
        loss = head_loss(outputs, targets, rating_weight=rating_weight) + space_weight * (1 - cosine)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*self.trained().values()], _CLIP)
        optimiser.step()
        classes = np.where(targets.rated[:, None], *(outputs[index].detach().numpy() for index in (0, 2)))
        right = classes.argmax(axis=1) == targets.soft.argmax(axis=1)
        return StepMetrics(loss=float(loss.item()), accuracy=float(right.mean()), cosine=float(cosine.item()))

    def predict(
        self, ids: NDArray[np.int64], mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the vectors [b, d] and rated logits [b, 3] of one batch, computed as in training."""
        self.eval()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            vectors, outputs = self(torch.from_numpy(ids), torch.from_numpy(mask))
        return vectors.numpy(), outputs[0].numpy()

    def trained(self) -> dict[str, Tensor]:
        """Return the parameters that training changes, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def resume_from(self, trained: Mapping[str, Tensor]) -> None:
        """Copy in values of `trained`."""
        own = self.trained()
        with torch.no_grad():
            for name, value in trained.items():
                own[name].copy_(value)

    def round_to_half(self) -> None:
        """Round the trained parameters to float16."""
        self.resume_from({name: value.half().float() for name, value in self.trained().items()})

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the update to store: float16, for each matrix [out, in] an `UP` [out, r] and a `DOWN` [r, in]."""
        return {
            name: value.detach().numpy().astype(np.float16) for name, value in sorted(self.update().items())
        }

    def update(self) -> dict[str, Tensor]:
        """Return the parameters of the low-rank update, by their names in its file."""
        parameters = {}
        for name, value in self.encoder.named_parameters():
            for suffix, file_suffix in _PEFT.items():
                if name.endswith(suffix):
                    parameters[name.removesuffix(suffix) + file_suffix] = value
        return parameters
