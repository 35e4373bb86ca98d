"""The command serve: flags and keys in, a server until a signal ends it.

Knows files of keys and what is printed. Does not know HTTP.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from ..config import PRESETS, AdaptConfig, ClusterConfig, ScoreConfig, SelectionConfig, ServeConfig
from ..errors import ConfigError, MissingExtraError
from ..recipe import TrainerRecipe
from .flags import (
    ClusterCommand,
    DatastorePlace,
    config_file_flag,
    loading_flags,
    model_flag,
    other_embedder_flag,
    preset_flag,
    settings_flags,
)
from .loading import Loading

KEY_VARIABLE = "TTTNN_API_KEY"


@click.command(cls=ClusterCommand)
@click.argument("datastore", type=DatastorePlace())
@model_flag
@click.option("--name", help="What clients call the model  [default: --model's last part]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0: from anywhere.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False),
    help=f"File of keys, one a line, one of which every request must bring  [env: {KEY_VARIABLE}, one key]",
)
@settings_flags(ServeConfig, "serve_flags")
@preset_flag
@settings_flags(AdaptConfig, "adapt_flags")
@settings_flags(SelectionConfig, "select_flags", prefix="select_")
@settings_flags(ScoreConfig, "score_flags", prefix="score_")
@settings_flags(ClusterConfig, "cluster_flags")
@other_embedder_flag
@click.option("--access-log/--no-access-log", default=True, show_default=True, help="A JSON line for each request.")
@loading_flags()
@config_file_flag
def serve(
    datastore: str,
    model: str,
    name: str | None,
    host: str,
    port: int,
    api_key_file: str | None,
    serve_flags: dict[str, Any],
    preset: str,
    adapt_flags: dict[str, Any],
    select_flags: dict[str, Any],
    score_flags: dict[str, Any],
    cluster_flags: dict[str, Any],
    embedder: str | None,
    access_log: bool,
    loading: Loading,
) -> None:
    """Answer the OpenAI API: each request by a model adapted to its neighbors.

    A page to look into it is at /. A SIGTERM or Ctrl-C finishes what there is; a second one ends at once.

    \b
    Examples:
      tttnn serve pile-00 --model smollm2-135m
      tttnn serve pile-00 --host 0.0.0.0 --api-key-file keys.txt --num-neighbors 5
    """
    try:
        from ..server.app import create_app
        from ..server.serving import listen
        from ..server.serving import serve as run
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"tttnn serve needs {error.name}: pip install 'tttnn[serve]'") from error
    config = ServeConfig(**serve_flags)
    recipe = TrainerRecipe(
        model,
        datastore,
        PRESETS[preset].with_(**adapt_flags),
        SelectionConfig(**select_flags),
        ScoreConfig(**score_flags),
        embedder=embedder,
        threads=loading.threads,
        cache_dir=loading.cache_dir,
        device=loading.device,
        dtype=loading.dtype,
        cluster=ClusterConfig(**cluster_flags),
    )
    app = create_app(recipe, config, name=name, api_keys=_keys(api_key_file))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if access_log:
        logging.getLogger("tttnn.server.access").setLevel(logging.INFO)
    listening = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    click.echo(f"loading {name or recipe.model_name}; {address}/ready says when it is there", err=True)
    run(
        app,
        listening,
        shutdown_timeout=config.shutdown_timeout,
        on_ready=lambda: click.echo(f"ready: {address}/ (page), {address}/v1 (OpenAI API)"),
    )


def _keys(path: str | None) -> list[str]:
    """Return the keys of a file, else that of the environment; a key never stands in a message."""
    if path is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        return [key] if key else []
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"{path}: must hold at least one key, a line each, got none")
    return keys
