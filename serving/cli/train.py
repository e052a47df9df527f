"""`valence train`: corpora to a version's bundle, with a progress bar. Registers nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.common import AsJson, show_record

app = typer.Typer(no_args_is_help=True, help="Train versions.")


@app.callback()
def _group() -> None:
    """Keeps `head` a command of its own while it is the only one."""


@app.command()
def head(
    out: Annotated[Path, typer.Argument(help="The bundle's folder; an equal bundle that is there is kept.")],
    cache: Annotated[Path, typer.Option(help="Corpora, encoder and token states; 5 GB.")] = Path(".cache"),
    as_json: AsJson = False,
) -> None:
    """Train the three-class head on the frozen default encoder; the same every time."""
    from registry import corpora
    from registry.bundle import Bundle
    from registry.export import build_encoder, default_source
    from registry.layout import Engine
    from registry.train import HeadPlan, train_head
    from serving.encoder import open_encoder

    plan, source = HeadPlan(), default_source()
    folder = cache / "encoders" / source.digest[:16]
    with _progress() as progress:
        progress("fetching corpora", 0)
        examples = corpora.load(cache / "corpora")
        if folder.exists():
            encoder = Bundle.open(folder)
        else:
            encoder = build_encoder(source, folder, progress=lambda step: progress(f"encoder: {step}", 0))
        trained = train_head(
            examples,
            open_encoder(encoder, engine=Engine.FP32, threads=plan.threads),
            out,
            name=f"attentive head on {source.name}",
            space=source.space,
            cache=cache / "states",
            plan=plan,
            judges={"int8": open_encoder(encoder, engine=Engine.INT8, threads=plan.threads)},
            progress=progress,
        )
    record = {
        "bundle": str(trained.path),
        "digest": trained.digest,
        "metrics": dict(trained.manifest.metrics),
    }
    show_record(record, as_json=as_json)


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal, else a line a tenth, on stderr; `say(step, share done)`."""
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
