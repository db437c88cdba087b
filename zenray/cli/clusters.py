"""``zenray cluster``: the warm local Ray cluster.

Runs in: driver.
"""

from typing import Annotated

import typer

from zenray.cli.output import JsonOption, fields, new_app, print_json

app = new_app("The local Ray cluster that is kept warm between runs: up, status, down.")


@app.command()
def up(
    num_cpus: Annotated[int | None, typer.Option("--num-cpus", min=1, help="Default: as many as there are.")] = None,
    num_gpus: Annotated[int | None, typer.Option("--num-gpus", min=0, help="Default: as many as there are.")] = None,
    idle: Annotated[
        float | None, typer.Option("--idle", metavar="SECONDS", help="How long it stays when nobody uses it.")
    ] = None,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="With Ray's dashboard: 3 s and 300 MB more.")] = False,
) -> None:
    """Start the cluster, unless it runs, and wait until it is ready."""
    from zenray import local_cluster

    info = local_cluster.ensure(num_cpus=num_cpus, num_gpus=num_gpus, idle_s=idle, with_dashboard=dashboard)
    typer.echo(f"the local cluster is up at {info.address} with {info.num_cpus:g} CPUs and {info.num_gpus:g} GPUs")
    if dashboard and info.dashboard_url:
        typer.echo(f"dashboard: {info.dashboard_url}")
    elif dashboard:
        typer.echo("it was running already, without a dashboard: `zenray cluster down` first", err=True)


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show whether the cluster runs, and how it is used."""
    from dataclasses import asdict

    from zenray import local_cluster
    from zenray.cli.output import time_text
    from zenray.progress import size_text
    from zenray.units import seconds_text

    found = local_cluster.status()
    if as_json:
        print_json(None if found is None else asdict(found))
        return
    if found is None:
        typer.echo("no local cluster is running; the next run on the local stack starts one")
        return
    left_s = max(0.0, found.info.idle_s - found.idle_for_s)
    fields(
        {
            "address": found.info.address,
            "started": time_text(found.info.started_at),
            "use": "in use" if found.is_in_use else f"idle, ends in {seconds_text(left_s)}",
            "cpus": f"{found.info.num_cpus:g}",
            "gpus": f"{found.info.num_gpus:g}",
            "processes": found.processes,
            "memory": size_text(found.memory_bytes),
            "ray": found.info.ray_version,
            "dashboard": found.info.dashboard_url,
            "log": found.info.log_path,
        }
    )


@app.command()
def down() -> None:
    """End the cluster with everything that runs in it."""
    from zenray import local_cluster

    typer.echo("the local cluster has ended" if local_cluster.down() else "no local cluster is running")
