"""A Hugging Face text-classification model, from a folder or the hub, as the source of an encoder bundle.

Never runs code that comes with a model, and reads a checkpoint that isn't safetensors as tensors only.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from tokenizers import Tokenizer

from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import TOKENIZER, Engine
from registry.encoders.engine_selection import load_engine
from registry.encoders.inputs import calibration_batches, calibration_texts
from registry.encoders.sources import RECIPE, silence_libraries
from registry.errors import ExportFailed, ImportRefused, RegistryError

# Longer texts are truncated, as for every encoder, and the answer says so.
_MAX_TOKENS = 512
# An engine may pad a text to a multiple of this.
_PADDING_MULTIPLE = 16
_VERIFIED_STEP, _TOLERANCE = 6, 1e-3
_SAFETENSORS = ("*.json", "*.txt", "*.model", "*.safetensors", "README.md")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_CHECKPOINT = ("pytorch_model*.bin",)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierSource:
    """A loaded model: an encoder source without a space, whose graph returns logits, float32 [b, 1, n], as tokens.

    `revision` is the hub's commit, if the model came from there. `weights` is the digest of its tensors, whatever
    their file format. `multi_label`: the labels don't exclude each other. `padding` is the id of padding.
    """

    name: str
    revision: str | None
    weights: str
    max_length: int
    labels: tuple[str, ...]
    multi_label: bool
    padding: int
    architecture: Mapping[str, Any]
    model: Any = field(repr=False)
    fast_tokenizer: Any = field(repr=False)
    tokenizer_json: str = field(repr=False)
    languages: tuple[str, ...] | None = None
    space: None = None
    base: None = None
    token_layers: tuple[int, ...] = ()
    encoding: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, source: str, *, online: bool = False) -> Self:
        """Load the model of a folder or of a name on the hub; `online` allows a download.

        Raises ImportRefused if the model is missing, isn't a complete text classifier, or has no fast tokenizer.
        """
        with _translate_errors(source), silence_libraries(offline=not online):
            folder, name, revision = _locate(source, online=online)
            model = _load_model(folder)
            fast_tokenizer = _load_tokenizer(folder)
            config = model.config
            padding = config.pad_token_id = _padding(config, fast_tokenizer)
            tokenizer_json = Tokenizer.from_str(fast_tokenizer.backend_tokenizer.to_str())
            tokenizer_json.no_padding()
            tokenizer_json.no_truncation()
            return cls(
                name=name,
                revision=revision,
                weights=_weights_digest(model),
                max_length=_max_length(folder, model, fast_tokenizer, padding),
                labels=_labels(folder, config),
                multi_label=config.problem_type == "multi_label_classification",
                padding=padding,
                architecture=_architecture(config),
                model=model,
                fast_tokenizer=fast_tokenizer,
                tokenizer_json=tokenizer_json.to_str(),
                languages=_languages(folder),
            )

    @property
    def digest(self) -> str:
        tokenizer = hashlib.sha256(self.tokenizer_json.encode()).hexdigest()
        network = [self.max_length, self.padding, dict(self.architecture), self.weights]
        content = json.dumps([RECIPE, "classifier", *network, tokenizer], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def provenance(self) -> dict[str, Any]:
        known = {"source": self.name, "weights": self.weights}
        return known | ({"revision": self.revision} if self.revision else {})

    def check(self) -> None:
        """Do nothing, because `load` checks the model."""

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_str(self.tokenizer_json)

    def graph(self) -> Any:
        return _logits_graph(self.model, self.padding)

    def update_weights(self, graph: Any) -> None:
        """Do nothing, because there is no update."""

    def verify(self, bundle: Bundle) -> None:
        """Raise ExportFailed unless the bundle's float32 graph in batches agrees with transformers on single texts."""
        tokenizer = Tokenizer.from_file(str(bundle.file(TOKENIZER)))
        tokenizer.enable_truncation(self.max_length)
        texts = calibration_texts()
        texts = sorted(
            [*texts[::_VERIFIED_STEP], " ".join(texts)], key=lambda text: len(tokenizer.encode(text).ids)
        )
        run = load_engine(bundle.path, Engine.FP32)
        logits = np.concatenate([run(batch)[1][:, 0, :] for batch in calibration_batches(tokenizer, texts)])
        shift = float(np.abs(self._scores(logits) - self._scores(self.logits(texts))).max())
        # Written with `not`, because every comparison with NaN is false.
        if not shift <= _TOLERANCE:
            raise ExportFailed(f"{self.name} can't be exported: its probabilities would move by {shift:.2g}")

    def logits(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the logits of transformers' own tokenizer and model, one text at a time: float32 [n, labels]."""
        import torch

        # Every encoder reads the beginning of a text that is too long.
        self.fast_tokenizer.truncation_side = "right"
        options = {"truncation": True, "max_length": self.max_length, "return_tensors": "pt"}
        with torch.inference_mode():
            rows = [self.model(**self.fast_tokenizer(text, **options)).logits[0] for text in texts]
            logits: NDArray[np.float32] = torch.stack(rows).float().numpy()
        return logits

    def _scores(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        wide = logits.astype(np.float64)
        scores: NDArray[np.float64] = expit(wide) if self.multi_label else softmax(wide, axis=1)
        return scores


def declared_labels(source: str) -> tuple[str, ...] | None:
    """Return the labels that a folder's configuration names, without loading anything; None for a name on the hub.

    Raises ImportRefused if there is no such folder, or it holds no configuration.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if _HUB_NAME.fullmatch(source):
            return None
        raise ImportRefused(f"there is no folder {source}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = {int(number): str(label) for number, label in config.get("id2label", {}).items()}
        count = len(named) or int(config.get("num_labels", 2))
    except (OSError, ValueError, AttributeError, TypeError) as exc:
        raise ImportRefused(f"{folder / 'config.json'} can't be read: {exc}") from exc
    return tuple(named.get(number, f"LABEL_{number}") for number in range(count))


def _languages(folder: Path) -> tuple[str, ...] | None:
    """Return the languages that a model's card names; None without a card, or if it names no certain ones."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    card = folder / "README.md"
    try:
        named = (metadata_load(card) or {}).get("language") if card.is_file() else None
    except (OSError, ValueError, YAMLError):
        return None
    # In YAML `no`, for Norwegian, is false.
    tags = ["no" if tag is False else str(tag) for tag in (named if isinstance(named, list) else [named])]
    # Other words, such as `multilingual`, name no certain language.
    return tuple(tags) if all(_LANGUAGE.fullmatch(tag) for tag in tags) else None


def _locate(source: str, *, online: bool) -> tuple[Path, str, str | None]:
    """Return the folder of a model, its name, and its commit if it comes from the hub."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder, folder.resolve().name, None
    if not _HUB_NAME.fullmatch(source):
        raise ImportRefused(f"there is no folder {source}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(*patterns: str) -> Path:
        return Path(
            snapshot_download(
                source,
                allow_patterns=list(patterns),
                # Sub-folders hold other formats of the same model.
                ignore_patterns=["*/*"],
                local_files_only=not online,
            )
        )

    try:
        folder = snapshot(*_SAFETENSORS)
        if online and not list(folder.glob("*.safetensors")):
            folder = snapshot(*_SAFETENSORS, *_CHECKPOINT)
    except LocalEntryNotFoundError as exc:
        if online:
            raise
        raise ImportRefused(
            f"{source} is neither a folder nor in the hub's cache: download it with --online"
        ) from exc
    return folder, source, folder.name


def _load_model(folder: Path) -> Any:
    """Load the network in float32. Raises ImportRefused if weights are missing or aren't finite."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    architectures = config.architectures or []
    if architectures and not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ImportRefused(f"{folder} holds a {architectures[0]}, which isn't a text-classification model")
    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        trust_remote_code=False,
        weights_only=True,
        output_loading_info=True,
    )
    if missing := sorted(loaded["missing_keys"]):
        raise ImportRefused(f"{folder} has no weights for {missing[0]}: it isn't a trained text classifier")
    for name, tensor in model.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise ImportRefused(f"{folder} has weights that aren't finite numbers, in {name}")
    return model.eval()


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    fast_tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not fast_tokenizer.is_fast:
        raise ImportRefused(
            f"{folder} has no fast tokenizer ({type(fast_tokenizer).__name__} is slow): add its tokenizer.json"
        )
    return fast_tokenizer


def _padding(config: Any, fast_tokenizer: Any) -> int:
    own = getattr(config, "pad_token_id", None)
    tokens = (own, fast_tokenizer.pad_token_id, fast_tokenizer.eos_token_id)
    return next((int(token) for token in tokens if token is not None), 0)


def _labels(folder: Path, config: Any) -> tuple[str, ...]:
    if config.problem_type == "regression" or config.num_labels < 2:
        raise ImportRefused(
            f"{folder} gives a number, not a class: import a classifier of two labels or more"
        )
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))


def _architecture(config: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    passing = ("_", "transformers_", "dtype", "torch_dtype")
    return {name: content[name] for name in sorted(content) if not name.startswith(passing)}


def _weights_digest(model: Any) -> str:
    content = hashlib.sha256()
    state = model.state_dict()
    for name in sorted(state):
        tensor = state[name].contiguous()
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def _max_length(folder: Path, model: Any, fast_tokenizer: Any, padding: int) -> int:
    """Return the largest number of tokens that the network reads, including an engine's padding."""
    positions = getattr(model.config, "max_position_embeddings", None) or _MAX_TOKENS
    limit = min(fast_tokenizer.model_max_length, positions, _MAX_TOKENS)
    # Some networks count positions from their padding id on, so they have fewer than they declare.
    lengths = {limit, limit - padding - 1}
    lengths |= {length // _PADDING_MULTIPLE * _PADDING_MULTIPLE for length in lengths}
    for length in sorted((length for length in lengths if length > 0), reverse=True):
        if _accepts(model, length, padding):
            return int(length)
    raise ImportRefused(
        f"{folder} holds a {model.config.model_type}, which doesn't run on ids and a mask alone"
    )


def _accepts(model: Any, length: int, padding: int) -> bool:
    import torch

    token = 1 if padding != 1 else 2
    ids = torch.full((1, -(-length // _PADDING_MULTIPLE) * _PADDING_MULTIPLE), padding)
    ids[0, :length] = token
    mask = torch.zeros_like(ids)
    mask[0, :length] = 1
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=mask)
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


def _logits_graph(model: Any, padding: int) -> Any:
    import torch

    class LogitsGraph(torch.nn.Module):
        """The classifier, with logits instead of token states; it replaces the caller's padding by its own id."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            ids = torch.where(attention_mask.bool(), input_ids, padding)
            output = self.encoder(input_ids=ids, attention_mask=attention_mask, output_hidden_states=True)
            share = attention_mask.unsqueeze(-1).to(torch.float32)
            pooled = (output.hidden_states[-1] * share).sum(1) / share.sum(1)
            return torch.nn.functional.normalize(pooled, dim=1), output.logits.unsqueeze(1)

    # Tracing restores the mode of the graph, and of the model with it.
    return LogitsGraph().eval()


@contextmanager
def _translate_errors(source: str) -> Iterator[None]:
    """Turn any error of the libraries about a folder or the hub into an ImportRefused of one line."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as exc:
        reason = str(exc).strip().split("\n", 1)[0] or type(exc).__name__
        raise ImportRefused(f"{source} can't be loaded: {reason}") from exc
