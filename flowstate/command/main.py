"""What the shell calls. A user's mistake is a sentence on standard error and exit code 2; never a traceback."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flowstate.command import ask
from flowstate.errors import Fenced, FlowstateError, InvalidFlow

app = typer.Typer(
    name="flowstate",
    help="Keyed totals that are live, exact, and queryable while events stream in.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def tell_version(wanted: bool) -> None:
    if wanted:
        from flowstate import __version__

        print(f"flowstate {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Which flowstate this is.")
    ] = False,
) -> None:
    """Keyed totals that are live, exact, and queryable while events stream in."""


@app.command()
def run(
    flow: Annotated[str, typer.Argument(help="Where the flow is: module:name or file.py:name.", show_default=False)],
    snapshots: Annotated[str, typer.Option(help="Folder or URL of the job's snapshots.", show_default=False)],
    settings: ask.Settings = None,
    every: Annotated[str, typer.Option(help="Time between snapshots.")] = "10s",
    name: Annotated[
        str | None, typer.Option(help="Name of the job; else that of its snapshots, or its first view.")
    ] = None,
    partitions: Annotated[int | None, typer.Option(min=1, help="Partitions of state; else one per worker.")] = None,
    keep: Annotated[int, typer.Option(min=1, help="Snapshots that stay.")] = 10,
    idle_after: Annotated[
        str, typer.Option(help="A split without a row for so long holds no window open any longer.")
    ] = "30s",
    spill: Annotated[str, typer.Option(help="Output that may wait for sinks before the sources pause.")] = "10GB",
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes of an own cluster.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Join the Dask cluster at tcp://host:port; else own one.")
    ] = None,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Take over from a run of this job that is alive.")
    ] = False,
    access: Annotated[
        str | None, typer.Option(help="TOML file that says who is let in; 'none' lets everybody read everything.")
    ] = None,
    tls_certificate: Annotated[str | None, typer.Option(help="PEM file of the workers' certificate.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="PEM file of its key.")] = None,
    tls_roots: Annotated[str | None, typer.Option(help="PEM file of who signed it; else it signs itself.")] = None,
    tls_clients: Annotated[str | None, typer.Option(help="PEM file of who signs the certificates of clients.")] = None,
) -> None:
    """Run a flow until its input ends or SIGTERM comes; whatever dies is started again, and the job resumes.

    FLOW names the outputs themselves, what is given to fs.start, or a function that returns them; --set gives its arguments.
    """
    from flowstate.command.cluster import JoinedCluster, OwnCluster
    from flowstate.command.run import Run
    from flowstate.command.target import load_outputs

    outputs, folder = load_outputs(flow, settings or ())
    options: dict[str, Any] = {
        "snapshots": snapshots, "every": every, "name": name, "partitions": partitions, "keep": keep,
        "idle_after": idle_after, "key_groups": 128, "storage_options": None, "spill": spill,
    }  # fmt: skip
    if scheduler is not None and workers is not None:
        raise InvalidFlow("--workers is for an own cluster; start workers of the cluster that you join yourself")
    cluster = JoinedCluster(scheduler) if scheduler is not None else OwnCluster(workers, folder)
    admits = serving(access, tls_certificate, tls_key, tls_roots, tls_clients)
    Run(cluster, outputs, takeover, **admits, **options).serve()


@app.command()
def gateway(
    snapshots: Annotated[str, typer.Argument(help="Folder or URL of the job's snapshots.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any free one.")] = 8815,
    http_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve HTTP beside it, at this port; 0 for any free one.")
    ] = None,
    job: Annotated[str | None, typer.Option(help="Name of the job, if it must be this one.")] = None,
    advertise: Annotated[str | None, typer.Option(help="Name that others reach this machine by.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="End with exit code 1 rather than take more memory than this, like 4GB.")
    ] = None,
    access: Annotated[
        str | None, typer.Option(help="TOML file that says who is let in; 'none' lets everybody read everything.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="FLOWSTATE_TOKEN", help="What is shown to workers that let in only whom they know."),
    ] = None,
    tls_certificate: Annotated[str | None, typer.Option(help="PEM file of the certificate.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="PEM file of its key.")] = None,
    tls_roots: Annotated[str | None, typer.Option(help="PEM file of who signed it; else it signs itself.")] = None,
    tls_clients: Annotated[str | None, typer.Option(help="PEM file of who signs the certificates of clients.")] = None,
) -> None:
    """Serve a job at one address that stays, by Arrow Flight and Flight SQL (and HTTP), until SIGTERM comes.

    The job is found by its snapshots wherever it runs; while it is down, what it saved last answers.
    """
    from flowstate.api.arguments import size
    from flowstate.command.gateway import serve

    admits = serving(access, tls_certificate, tls_key, tls_roots, tls_clients)
    most = None if memory is None else size("memory", memory)
    serve(
        snapshots,
        job,
        memory=most,
        host=host,
        port=port,
        http_port=http_port,
        advertise=advertise,
        token=token,
        **admits,
    )


@app.command()
def demo(
    months: Annotated[
        int | None,
        typer.Option(
            min=1, help="So many months, as fast as they go, and every invoice checked; else live until Ctrl-C."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same events.")] = 1,
    data: Annotated[
        Path | None, typer.Option(help="Keep everything in this folder, and go on from what is there.")
    ] = None,
) -> None:
    """See it work: billing, live in this terminal, with subtotals that change as you watch."""
    from flowstate.command.demo import demo

    demo(months, seed, data)


@app.command()
def token() -> None:
    """Make a bearer token: the first line is for its holder, the second stands for it in the file of the access."""
    from flowstate.view.access import Access

    print(*Access.make_token(), sep="\n")


@app.command()
def password() -> None:
    """Ask for a password, and say what stands for it in the file of the access."""
    from flowstate.view.access import Access

    if sys.stdin.isatty():
        given = str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    else:
        given = sys.stdin.readline().rstrip("\n")
    print(Access.hash_password(given))


ask.register(app)


def serving(
    access: str | None, certificate: str | None, key: str | None, roots: str | None, clients: str | None
) -> dict[str, Any]:
    """`access` and `tls` for what serves, from what the command line names."""
    from flowstate.view.access import Access
    from flowstate.view.tls import Tls

    if (certificate is None) != (key is None) or (certificate is None and (roots or clients)):
        raise InvalidFlow("a certificate and its key belong together: --tls-certificate and --tls-key")
    tls = None
    if certificate is not None and key is not None:
        tls = Tls.from_files(certificate, key, roots=roots, clients=clients)
    return {"access": access if access in (None, "none") else Access.from_file(access), "tls": tls}


def main() -> None:
    """Exit code 0: done, or stopped as asked. 1: it could not go on. 2: something must be changed first. 3: another run took over."""
    try:
        app()
    except InvalidFlow as error:
        _say(error)
        sys.exit(2)
    except Fenced as error:
        _say(error)
        sys.exit(3)
    except FlowstateError as error:
        _say(error)
        sys.exit(1)


def _say(error: FlowstateError) -> None:
    print(f"flowstate: {error}", file=sys.stderr, flush=True)
