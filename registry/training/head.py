"""The attentive head as a torch network, with its training step. Serving computes the same head in numpy.

Importing this module imports torch; only training does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from registry.bundles.bundle import LABELS
from registry.training.samples import Targets
from registry.training.token_states import TokenStates

# The rated logits [b, 3], the ratings [b] and the unrated logits [b, 3].
HeadOutput: TypeAlias = tuple[Tensor, Tensor, Tensor]

_CLASSES = len(LABELS)
_ROWS = 256
_CLIP = 1.0


@contextmanager
def deterministic(*, seed: int, threads: int) -> Iterator[None]:
    """Fix the seed, the number of threads and the kernels inside the block."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


class AttentiveNetwork(nn.Module):  # type: ignore[misc]
    """A network with attentive pooling over token states; it outputs rated classes, the rating, unrated classes."""

    def __init__(
        self, states: int, *, width: int, attention: int, dropout: float, input_dropout: float
    ) -> None:
        super().__init__()
        self.project = nn.Linear(states, width)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, attention, bias=False)
        self.hidden = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, 2 * _CLASSES + 1)
        self.input_dropout = nn.Dropout(input_dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> HeadOutput:
        """Compute the outputs for tokens [b, t, w] and mask [b, t]."""
        rows, length, _ = tokens.shape
        states = self.norm(self.project(self.input_dropout(tokens)))
        states = self.dropout(functional.gelu(states, approximate="tanh"))
        padding = ~mask.unsqueeze(-1)
        weights = self.query(states).masked_fill(padding, -torch.inf).softmax(dim=1)
        slices = states.view(rows, length, weights.shape[2], -1)
        pooled = (weights.unsqueeze(-1) * slices).sum(dim=1).reshape(rows, -1)
        highest = states.masked_fill(padding, -torch.inf).amax(dim=1)
        hidden = functional.gelu(self.hidden(torch.cat([pooled, highest], dim=1)), approximate="tanh")
        out = self.out(self.dropout(hidden))
        return out[:, :_CLASSES], out[:, _CLASSES], out[:, _CLASSES + 1 :]

    def optimiser(self, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=weight_decay)

    def step(
        self,
        optimiser: torch.optim.Optimizer,
        *,
        learning_rate: float,
        inputs: tuple[NDArray[np.float32], NDArray[np.bool_]],
        targets: Targets,
        rating_weight: float,
    ) -> float:
        """Update the weights on one batch; return its loss."""
        for group in optimiser.param_groups:
            group["lr"] = learning_rate
        self.train()
        tokens, mask = (torch.from_numpy(array) for array in inputs)
        loss = head_loss(self(tokens, mask), targets, rating_weight=rating_weight)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), _CLIP)
        optimiser.step()
        return float(loss.item())

    def predict(self, tokens: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the rated logits [b, 3] of one batch."""
        self.eval()
        with torch.inference_mode():
            logits: NDArray[np.float32] = self(torch.from_numpy(tokens), torch.from_numpy(mask))[0].numpy()
        return logits

    def logits(self, states: TokenStates, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the rated logits of the texts `rows`: float64 [n, 3]."""
        logits = np.zeros((len(rows), _CLASSES), dtype=np.float64)
        order = np.argsort(states.lengths[rows], kind="stable")
        for start in range(0, len(rows), _ROWS):
            chunk = order[start : start + _ROWS]
            logits[chunk] = self.predict(*states.pad(rows[chunk]))
        return logits

    def round_to_half(self) -> None:
        """Round the weights to float16, so that the evaluated weights are the served ones."""
        self.half().float()

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the served weights by the names of `ATTENTIVE_TENSORS`: float16, matrices [in, out]."""
        state = {
            name: tensor.detach().numpy().astype(np.float16) for name, tensor in self.state_dict().items()
        }
        state["out.weight"], state["out.bias"] = state["out.weight"][:_CLASSES], state["out.bias"][:_CLASSES]
        return {name: np.ascontiguousarray(array.T) for name, array in state.items()}


def head_loss(outputs: HeadOutput, targets: Targets, *, rating_weight: float) -> Tensor:
    """Return a batch's loss: cross-entropy of the rated or unrated output by target, plus the error of the rating."""
    for_rated, rating, for_unrated = outputs
    has_rating = torch.from_numpy(targets.rated)
    logits = torch.where(has_rating.unsqueeze(1), for_rated, for_unrated)
    classes = -(torch.from_numpy(targets.soft) * logits.log_softmax(dim=1)).sum(dim=1)
    # Half of a rating has about the spread of the other targets.
    errors = (rating - torch.from_numpy(targets.ratings) / 2).square() * has_rating
    return (classes * torch.from_numpy(targets.weights) + rating_weight * errors).mean()
