"""Encoders on a torch device, in half precision on a GPU.

The only module of serving that imports torch and sentence-transformers.
"""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import WEIGHTS, EncoderSettings
from registry.encoders.sources import without_pooler
from registry.errors import BundleInvalid
from serving.inference.encoder import warm_up_by_running
from serving.inference.microbatches import (
    MicroBatch,
    MicroBatchPlan,
    TokenizedTexts,
    WarmUp,
    load_tokenizer,
    plan_micro_batches,
)

_TOKEN_BUDGET = 16_384


class TorchEncoder:
    """Runs an encoder bundle in micro-batches on one device."""

    engine = "torch"

    def __init__(self, bundle: Bundle, *, device: str = "cuda", max_rows: int = 64) -> None:
        self.settings = EncoderSettings.from_manifest(bundle.manifest)
        self.digest = self.settings.digest
        self._device = device
        self._max_rows = max_rows
        self._tokenizer = load_tokenizer(bundle, self.settings)
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        try:
            config = AutoConfig.for_model(**self.settings.architecture)
            if self.settings.labels:
                model = AutoModelForSequenceClassification.from_config(config)
            else:
                model = without_pooler(AutoModel.from_config(config))
            model.load_state_dict(load_file(bundle.file(WEIGHTS)), strict=True)
        except (ValueError, TypeError, RuntimeError, ImportError) as exc:
            raise BundleInvalid(f"{bundle.manifest.name} can't be run by torch: {exc}") from exc
        self._model = model.eval().to(device=device, dtype=dtype)
        self._pooling = Pooling(self.settings.dimensions, self.settings.pooling)

    def run(
        self,
        texts: Sequence[str],
        *,
        bulk: bool = False,  # noqa: ARG002  (a GPU's passes are short)
        queries: Collection[int] = (),
    ) -> Iterator[MicroBatch]:
        tokenized = TokenizedTexts(self._tokenizer, self.settings, texts, queries)
        for rows in plan_micro_batches(
            tokenized.lengths, threads=1, max_rows=self._max_rows, budget=_TOKEN_BUDGET
        ):
            plan = tokenized.pad(rows)
            embedding, tokens = self._forward(plan)
            yield plan.to_micro_batch(texts, embedding, tokens)

    def warm_up(self, budget_s: float) -> WarmUp:  # noqa: ARG002  (one short pass is enough)
        return warm_up_by_running(self.run, ["warm"])

    def _forward(self, plan: MicroBatchPlan) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            ids = torch.from_numpy(plan.ids).to(self._device)
            mask = torch.from_numpy(plan.mask).to(self._device)
            ids = torch.where(mask.bool(), ids, self._model.config.pad_token_id or 0)
            output = self._model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            states = output.hidden_states
            last = states[-1] if self.settings.labels else output.last_hidden_state
            features = {"token_embeddings": last.float(), "attention_mask": mask}
            embedding = torch.nn.functional.normalize(self._pooling(features)["sentence_embedding"], dim=1)
            tokens = (
                output.logits.float().unsqueeze(1)
                if self.settings.labels
                else torch.cat([states[layer].float() for layer in self.settings.token_layers], dim=-1)
            )
        return _numpy(embedding), _numpy(tokens)


def _numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.cpu().numpy()
    return array
