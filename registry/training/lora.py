"""An encoder with a low-rank update and a head on its states, as one torch network with its training step.

Importing this module imports torch; only training does. The encoder's own weights are never changed.
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
    """What one update saw: its loss, the share of classes that were right, the mean cosine of the vectors."""

    loss: float
    accuracy: float
    cosine: float


class JointNetwork(nn.Module):  # type: ignore[misc]
    """One pass gives vectors and what a head says; begins as the frozen encoder itself.

    The update is LoRA (Hu et al., arXiv 2106.09685) beside every matrix of the layers, with a scale of 1.
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
        """Token ids [b, t] and mask [b, t] to vectors [b, d] of unit length and what the head says."""
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
        """Of the update, which doesn't decay, and of the head; each group keeps its `highest` rate."""
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
        """One update on one batch, at a share of the highest rates; `vectors` [b, d] are those to stay near."""
        for group in optimiser.param_groups:
            group["lr"] = share * group["highest"]
        self.train()
        ids, mask = (torch.from_numpy(array) for array in inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, said = self(ids, mask)
        cosine = (found * torch.from_numpy(vectors)).sum(dim=1).mean()
        loss = head_loss(said, targets, rating_weight=rating_weight) + space_weight * (1 - cosine)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*self.trained().values()], _CLIP)
        optimiser.step()
        classes = np.where(targets.rated[:, None], *(said[place].detach().numpy() for place in (0, 2)))
        right = classes.argmax(axis=1) == targets.soft.argmax(axis=1)
        return StepMetrics(loss=float(loss.item()), accuracy=float(right.mean()), cosine=float(cosine.item()))

    def judge(
        self, ids: NDArray[np.int64], mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Vectors [b, d] and rated logits [b, 3] of one batch, computed as in training."""
        self.eval()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            found, said = self(torch.from_numpy(ids), torch.from_numpy(mask))
        return found.numpy(), said[0].numpy()

    def trained(self) -> dict[str, Tensor]:
        """Everything that training changes, by name: the parameters themselves."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def resume_from(self, trained: Mapping[str, Tensor]) -> None:
        """Takes over values of `trained`."""
        own = self.trained()
        with torch.no_grad():
            for name, value in trained.items():
                own[name].copy_(value)

    def round_to_half(self) -> None:
        """Rounds what is trained to what a float16 file keeps."""
        self.resume_from({name: value.half().float() for name, value in self.trained().items()})

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The update as a file keeps it: float16, for each matrix [out, in] an `UP` [out, r] and a `DOWN` [r, in]."""
        return {
            name: value.detach().numpy().astype(np.float16) for name, value in sorted(self.update().items())
        }

    def update(self) -> dict[str, Tensor]:
        """The parameters of the low-rank update, by the names that its file has for them."""
        found = {}
        for name, value in self.encoder.named_parameters():
            for end, ours in _PEFT.items():
                if name.endswith(end):
                    found[name.removesuffix(end) + ours] = value
        return found
