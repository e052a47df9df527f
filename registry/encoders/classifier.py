"""A Hugging Face text-classification model, from a folder or the hub's cache, as what an encoder bundle is built from.

Runs no code that comes with a model, and reads a checkpoint that isn't safetensors as tensors only. Never registers.
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
from registry.encoders.export import calibration_batches, calibration_texts
from registry.encoders.sources import RECIPE, silence_libraries
from registry.errors import ExportFailed, ImportRefused, RegistryError

# Longer texts are cut, as they are for every encoder, and the answer says so.
_MOST_TOKENS = 512
# An engine may pad a text up to the next multiple.
_PADDED_TO = 16
_PROOF_STEP, _PROOF_TOLERANCE = 6, 1e-3
_SAFETENSORS = ("*.json", "*.txt", "*.model", "*.safetensors")
_CHECKPOINT = ("pytorch_model*.bin",)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierSource:
    """A loaded model: a `Source` of no space, whose graph gives float32 [b, 1, n] logits as its tokens.

    `revision` is the hub's commit, if the model came from there; `weights` the digest of its tensors, however they
    were stored; `several`: its labels don't exclude each other; `padding` the id that stands where no token is.
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
    space: None = None
    base: None = None
    token_layers: tuple[int, ...] = ()

    @classmethod
    def load(cls, source: str, *, online: bool = False) -> Self:
        """The model of a folder, or of a name on the hub; `online` allows to download it.

        Raises ImportRefused if it isn't there, isn't a text classifier as a whole, or has no fast tokenizer.
        """
        with _refused(source), silence_libraries(offline=not online):
            folder, name, revision = _found(source, online=online)
            model = _model(folder)
            fast_tokenizer = _reader(folder)
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
            )

    @property
    def digest(self) -> str:
        content = json.dumps(
            [
                RECIPE,
                "classifier",
                self.max_length,
                self.padding,
                dict(self.architecture),
                self.weights,
                hashlib.sha256(self.tokenizer_json.encode()).hexdigest(),
            ],
            sort_keys=True,
        )
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def provenance(self) -> dict[str, Any]:
        known = {"source": self.name, "weights": self.weights}
        return known | ({"revision": self.revision} if self.revision else {})

    def check(self) -> None:
        """It was checked when it was loaded."""

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_str(self.tokenizer_json)

    def graph(self) -> Any:
        return _with_logits(self.model, self.padding)

    def update_weights(self, graph: Any) -> None:
        """There is no update."""

    def verify(self, bundle: Bundle) -> None:
        """That the bundle's float32 graph says what transformers' own tokenizer and model say, alone and in batches.

        Raises ExportFailed.
        """
        tokenizer = Tokenizer.from_file(str(bundle.file(TOKENIZER)))
        tokenizer.enable_truncation(self.max_length)
        texts = calibration_texts()
        texts = sorted(
            [*texts[::_PROOF_STEP], " ".join(texts)], key=lambda text: len(tokenizer.encode(text).ids)
        )
        run = load_engine(bundle.path, Engine.FP32)
        found = np.concatenate([run(batch)[1][:, 0, :] for batch in calibration_batches(tokenizer, texts)])
        off = float(np.abs(self._scores(found) - self._scores(self.logits(texts))).max())
        if not off <= _PROOF_TOLERANCE:
            raise ExportFailed(f"{self.name} can't be exported: its probabilities would move by {off:.2g}")

    def logits(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """What transformers' own tokenizer and model say of each text by itself: float32 [n, labels]."""
        import torch

        # Every encoder reads the beginning of a text that is too long.
        self.fast_tokenizer.truncation_side = "right"
        with torch.inference_mode():
            rows = [
                self.model(
                    **self.fast_tokenizer(
                        text, truncation=True, max_length=self.max_length, return_tensors="pt"
                    )
                ).logits[0]
                for text in texts
            ]
            found: NDArray[np.float32] = torch.stack(rows).float().numpy()
        return found

    def _scores(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        wide = logits.astype(np.float64)
        scores: NDArray[np.float64] = expit(wide) if self.multi_label else softmax(wide, axis=1)
        return scores


def _found(source: str, *, online: bool) -> tuple[Path, str, str | None]:
    """The folder of a model, what it is called, and its commit if it is the hub's."""
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
                # What lies deeper are other forms of the same model.
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


def _model(folder: Path) -> Any:
    """The network with all its weights, in float32. Raises ImportRefused if some are missing or aren't numbers."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    made_for = config.architectures or []
    if made_for and not any(name.endswith("ForSequenceClassification") for name in made_for):
        raise ImportRefused(f"{folder} holds a {made_for[0]}, which isn't a text-classification model")
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


def _reader(folder: Path) -> Any:
    from transformers import AutoTokenizer

    fast_tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not fast_tokenizer.is_fast:
        raise ImportRefused(
            f"{folder} has no fast tokenizer ({type(fast_tokenizer).__name__} is slow): add its tokenizer.json"
        )
    return fast_tokenizer


def _padding(config: Any, fast_tokenizer: Any) -> int:
    for token in (
        getattr(config, "pad_token_id", None),
        fast_tokenizer.pad_token_id,
        fast_tokenizer.eos_token_id,
    ):
        if token is not None:
            return int(token)
    return 0


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
    """The most tokens that the network reads, with what an engine may pad them to."""
    positions = getattr(model.config, "max_position_embeddings", None) or _MOST_TOKENS
    most = min(fast_tokenizer.model_max_length, positions, _MOST_TOKENS)
    # Some count positions from their padding id on, and so have fewer than they say.
    lengths = {most, most - padding - 1}
    lengths |= {length // _PADDED_TO * _PADDED_TO for length in lengths}
    for length in sorted((length for length in lengths if length > 0), reverse=True):
        if _reads(model, length, padding):
            return int(length)
    raise ImportRefused(
        f"{folder} holds a {model.config.model_type}, which doesn't run on ids and a mask alone"
    )


def _reads(model: Any, length: int, padding: int) -> bool:
    import torch

    token = 1 if padding != 1 else 2
    ids = torch.full((1, -(-length // _PADDED_TO) * _PADDED_TO), padding)
    ids[0, :length] = token
    mask = torch.zeros_like(ids)
    mask[0, :length] = 1
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=mask)
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


def _with_logits(model: Any, padding: int) -> Any:
    import torch

    class Graph(torch.nn.Module):
        """The classifier, its logits in place of token states; padding by its own id, whatever the caller pads with."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            ids = torch.where(attention_mask.bool(), input_ids, padding)
            found = self.encoder(input_ids=ids, attention_mask=attention_mask, output_hidden_states=True)
            share = attention_mask.unsqueeze(-1).to(torch.float32)
            pooled = (found.hidden_states[-1] * share).sum(1) / share.sum(1)
            return torch.nn.functional.normalize(pooled, dim=1), found.logits.unsqueeze(1)

    # Tracing gives a graph back in the mode that it was in, and the model with it.
    return Graph().eval()


@contextmanager
def _refused(source: str) -> Iterator[None]:
    """Whatever a foreign folder, or the hub, makes the libraries raise is a reason in one line."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as exc:
        reason = str(exc).strip().split("\n", 1)[0] or type(exc).__name__
        raise ImportRefused(f"{source} can't be loaded: {reason}") from exc
