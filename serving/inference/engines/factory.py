"""The choice of the engine that runs a bundle. Imports only the engine that it opens."""

from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import ENGINES, EncoderSettings, Engine
from serving.inference.encoder import Encoder


def open_encoder(
    bundle: Bundle, *, engine: Engine | None = None, threads: int = 1, device: str | None = None
) -> Encoder:
    """Open the encoder of a bundle on a torch `device`, or on CPU with `engine`.

    If `engine` is None or the bundle has no file for it, open the engine that was fastest where the bundle was built.
    """
    if device is not None:
        from serving.inference.engines.torch import TorchEncoder

        return TorchEncoder(bundle, device=device)
    if engine is None or ENGINES[engine] not in bundle.manifest.files:
        engine = EncoderSettings.from_manifest(bundle.manifest).engine
    if engine is Engine.INT8:
        from serving.inference.engines.openvino import OpenVinoEncoder

        return OpenVinoEncoder(bundle, threads=threads)
    from serving.inference.engines.onnx import OnnxEncoder

    return OnnxEncoder(bundle, engine=engine, threads=threads)
