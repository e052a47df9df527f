"""`valence mlflow`: MLflow's own UI over the platform's store."""

import sys
from functools import partial
from typing import Annotated

import typer


def mlflow(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on; MLflow has no login.")] = "127.0.0.1",
    allowed_hosts: Annotated[
        str, typer.Option(help="Host names under which other machines reach it, separated by commas.")
    ] = "",
) -> None:
    """Show runs, metrics, versions and aliases in MLflow's own UI, until Ctrl-C."""
    from serving.operations import mlflow_ui
    from serving.settings import Settings

    hosts = [name.strip() for name in allowed_hosts.split(",") if name.strip()]
    say = partial(print, flush=True)
    mlflow_ui.serve(Settings(), host=host, port=port, allowed_hosts=hosts, say=say)
    print("MLflow's server ended", file=sys.stderr)
