"""``assets`` and ``cache``: what lies in the folders that the suite reads and fills."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from resnet8_eval import assets
from resnet8_eval.cli.options import AsJson, AssetsDir, CacheDir, cache_folder, print_json
from resnet8_eval.store import Store, size

assets_app = typer.Typer(help="Show which assets are there, or fetch those that are missing.")
cache_app = typer.Typer(help="Look after the artefacts that runs leave.", no_args_is_help=True)


@assets_app.callback(invoke_without_command=True)
def show_assets(
    context: typer.Context,
    assets_dir: AssetsDir = None,
    cache_dir: CacheDir = None,
    as_json: AsJson = False,
) -> None:
    """Show which assets are there, verified, damaged or missing. Touches no network."""
    if context.invoked_subcommand:
        _refuse_before(context, context.invoked_subcommand)
        return
    findings = assets.survey(assets_dir, cache_folder(cache_dir))
    if as_json:
        print_json([{**asdict(f), "path": f.path and str(f.path)} for f in findings])
        return
    for finding in findings:
        place = finding.path or finding.detail
        typer.echo(f"{finding.state:9} {finding.name:28} {place}")


def _refuse_before(context: typer.Context, command: str) -> None:
    """Refuse what stands before the name of a command, which would never hear of it."""
    sources = {p.opts[0]: context.get_parameter_source(str(p.name)) for p in context.command.params}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        raise typer.BadParameter(
            f"{' and '.join(given)} would do nothing before {command}; its own options, which"
            f" {command} --help lists, stand behind it"
        )


@assets_app.command()
def fetch(cache_dir: CacheDir = None) -> None:
    """Download what is missing into the cache, verified before it counts."""
    folder = cache_folder(cache_dir)
    assets.fetch(folder)
    typer.echo(f"All assets are in {folder}.")


@cache_app.command("show")
def cache_show(cache_dir: CacheDir = None, as_json: AsJson = False) -> None:
    """List the artefacts: what each is, its size, and whether it is whole."""
    store = Store(cache_folder(cache_dir))
    found = [(folder, artifact, False) for folder, artifact in store.artifacts()]
    found += [(folder, None, True) for folder in store.unfinished()]
    rows: list[dict[str, Any]] = [
        {
            "folder": str(folder),
            "stage": artifact.stage if artifact else None,
            "bytes": size(folder),
            "whole": artifact is not None,
            "unfinished": unfinished,
        }
        for folder, artifact, unfinished in found
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        broken = "unfinished" if row["unfinished"] else "damaged; not served, made anew when needed"
        state = row["stage"] or broken
        typer.echo(f"{_kilobytes(row['bytes'])}  {Path(row['folder']).name:60} {state}")
    typer.echo(f"{_kilobytes(sum(row['bytes'] for row in rows))}  in all")


@cache_app.command("size")
def cache_size(cache_dir: CacheDir = None, as_json: AsJson = False) -> None:
    """Say how much room the artefacts take, and the whole cache folder with its downloads."""
    root = Store(cache_folder(cache_dir)).root
    found = {"artifacts": size(root / "artifacts"), "all": size(root)}
    if as_json:
        print_json({"folder": str(root), "bytes": found})
        return
    typer.echo(f"{_kilobytes(found['artifacts'])}  artefacts")
    typer.echo(f"{_kilobytes(found['all'])}  in all, with downloads, in {root}")


@cache_app.command("verify")
def cache_verify(cache_dir: CacheDir = None) -> None:
    """Hash every file of every artefact again; exit status 1 if one is damaged."""
    found = list(Store(cache_folder(cache_dir)).artifacts())
    damaged = [folder for folder, artifact in found if artifact is None]
    for folder in damaged:
        typer.echo(f"damaged: {folder}")
    typer.echo(f"{len(found) - len(damaged)} of {len(found)} artefacts are whole")
    if damaged:
        raise typer.Exit(1)


@cache_app.command("clear")
def cache_clear(cache_dir: CacheDir = None) -> None:
    """Remove every artefact, and what runs left beside them. Downloaded assets stay."""
    typer.echo(f"{Store(cache_folder(cache_dir)).clear()} artefacts removed")


def _kilobytes(count: int) -> str:
    return f"{count / 1000:10,.1f} kB"
