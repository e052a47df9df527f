"""`valence train`: trains bundles of versions from corpora, with a progress bar. Registers nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from serving.cli.output import AsJson, show_record

if TYPE_CHECKING:
    from registry.bundles.bundle import Bundle
    from registry.encoders.sources import SentenceEncoderSource

Say: TypeAlias = Callable[[str, float], None]

app = typer.Typer(no_args_is_help=True, help="Train versions.")


@app.command()
def head(
    out: Annotated[Path, typer.Argument(help="Folder of the bundle; an equal bundle there is kept.")],
    space: Annotated[
        str | None, typer.Option(help="The space whose encoder the head reads; unset: the default encoder.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Corpora, encoder and token states; 5 GB.")] = Path(".cache"),
    as_json: AsJson = False,
) -> None:
    """Train the three-class head on a frozen encoder; each run gives the same bundle."""
    from registry.bundles.manifest_schema import Engine
    from registry.data import corpora
    from registry.encoders.sources import default_source
    from registry.training.train_head import HeadPlan, train_head
    from serving.inference.engines.factory import open_encoder

    plan = HeadPlan()
    registered = None if space is None else _space_encoder(space, cache)
    with _progress() as progress:
        progress("fetching corpora", 0)
        examples = corpora.load(cache / "corpora")
        encoder = registered or _encoder(default_source(), cache, progress)
        trained = train_head(
            examples,
            open_encoder(encoder, engine=Engine.FP32, threads=plan.threads),
            out,
            name=f"attentive head on {encoder.manifest.name}",
            space=encoder.manifest.space,
            cache=cache / "states",
            plan=plan,
            other_engines={"int8": open_encoder(encoder, engine=Engine.INT8, threads=plan.threads)},
            progress=progress,
        )
    _show(trained, as_json=as_json)


@app.command()
def joint(
    out: Annotated[Path, typer.Argument(help="Folder of the bundle; an equal bundle there is kept.")],
    cache: Annotated[Path, typer.Option(help="Corpora, encoders, vectors and checkpoints; 1 GB.")] = Path(
        ".cache"
    ),
    texts: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of training texts in an epoch; unset: all.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs; unset: those of the plan.")] = None,
    budget_minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Maximum duration of the training, which shortens the schedule."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train the joint model: a low-rank update of the default encoder, and a head. An interrupted run resumes."""
    from registry.bundles.manifest_schema import ENGINES, Engine
    from registry.data import corpora
    from registry.encoders.sources import default_source
    from registry.training.train_joint import JointPlan, train_joint
    from serving.inference.encoder import Encoder
    from serving.inference.engines.factory import open_encoder

    plan, source = JointPlan(texts=texts, budget_minutes=budget_minutes), default_source()
    if epochs is not None:
        plan = replace(plan, epochs=epochs)
    with _progress() as progress:

        def open_engines(merged: "SentenceEncoderSource") -> "dict[Engine, Encoder]":
            built = _encoder(merged, cache, progress)
            there = [engine for engine, name in ENGINES.items() if name in built.manifest.files]
            return {engine: open_encoder(built, engine=engine, threads=plan.threads) for engine in there}

        progress("fetching corpora", 0)
        examples = corpora.load(cache / "corpora")
        encoder = _encoder(source, cache, progress)
        trained = train_joint(
            examples,
            source,
            out,
            name=f"joint model of {source.name}",
            original=open_encoder(encoder, engine=Engine.FP32, threads=plan.threads),
            open_engines=open_engines,
            cache=cache / "joint",
            plan=plan,
            progress=progress,
        )
    _show(trained, as_json=as_json)


def _space_encoder(space: str, cache: Path) -> "Bundle":
    """Return the bundle of the registered encoder that defines a space."""
    from registry.bundles.bundle import Bundle
    from serving.core.connections import build_running_registry
    from serving.settings import Settings

    registry = build_running_registry(Settings())
    return Bundle.open(registry.fetch(registry.space_encoder(space), cache))


def _encoder(source: "SentenceEncoderSource", cache: Path, progress: Say) -> "Bundle":
    """Return the bundle of an encoder, built unless the cache has it."""
    from registry.bundles.bundle import Bundle
    from registry.encoders.export import build_encoder

    folder = cache / "encoders" / source.digest[:16]
    if folder.exists():
        return Bundle.open(folder)
    return build_encoder(source, folder, progress=lambda step: progress(f"encoder: {step}", 0))


def _show(trained: "Bundle", *, as_json: bool) -> None:
    record = {
        "bundle": str(trained.path),
        "digest": trained.digest,
        "metrics": dict(trained.manifest.metrics),
    }
    show_record(record, as_json=as_json)


@contextmanager
def _progress() -> Iterator[Say]:
    """Show progress on stderr: a bar on a terminal, else a line for each tenth; yield `say(step, share)`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        shown: set[tuple[str, int]] = set()

        def say(step: str, share: float) -> None:
            tenths = int(share * 10)
            if (step, tenths) not in shown:
                shown.add((step, tenths))
                console.print(f"{step} {tenths * 10} %", highlight=False)

        yield say
        return
    columns = TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda step, share: bar.update(task, description=step, completed=share)
