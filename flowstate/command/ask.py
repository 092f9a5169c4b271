"""What the shell asks a job: ``get``, ``sql``, ``tail``, ``views``, ``status`` and ``snapshots``. Nothing heavy is imported to say how."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowstate.errors import FlowstateError, InvalidFlow

if TYPE_CHECKING:
    from flowstate.command.place import Place
    from flowstate.view.freshness import Freshness

CODES = """

Exit code 0: answered. 1: refused, unavailable, or not as fresh as was asked for. 2: something must be mended first."""

Where = Annotated[
    str,
    typer.Argument(
        metavar="WHERE",
        help="host:port or grpc://host:port of a worker or a gateway, or the folder or URL of the snapshots.",
        show_default=False,
    ),
]
View = Annotated[str, typer.Argument(metavar="VIEW", help="Its name.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An argument of the flow's function.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="CSV with a header.")]
MaxAge = Annotated[
    float | None,
    typer.Option(min=0, help="Seconds that saved state may be old; 0 for live answers alone.", show_default=False),
]
AtLeast = Annotated[
    list[str] | None,
    typer.Option(metavar="SPLIT=OFFSET", help="Only what has applied this split so far.", show_default=False),
]
Consistent = Annotated[bool, typer.Option("--consistent", help="All partitions at one position, made now.")]
Snapshot = Annotated[int | None, typer.Option(min=0, help="The saved snapshot of this number.", show_default=False)]
Wait = Annotated[float | None, typer.Option(min=0, max=60, help="Seconds to wait for --at-least.", show_default=False)]
JobName = Annotated[str | None, typer.Option("--job", help="Name of the job, if it must be this one.")]
Token = Annotated[
    str | None,
    typer.Option(envvar="FLOWSTATE_TOKEN", help="What is shown where only those are let in who are known."),
]
Roots = Annotated[
    str | None,
    typer.Option(help="PEM file of who signed the certificate of the service. A bare host:port is then TLS, too."),
]
Certificate = Annotated[str | None, typer.Option(help="PEM file of the certificate to show (mutual TLS).")]
Key = Annotated[str | None, typer.Option(help="PEM file of its key.")]


def asking(
    *,
    job: JobName = None,
    token: Token = None,
    tls_roots: Roots = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
) -> Callable[[str], Place]:
    """WHERE -> the place, asked in this way."""
    from flowstate.command.place import Place

    return lambda where: Place(where, job, token, tls_roots, tls_certificate, tls_key)


def freshness(
    *,
    max_age: MaxAge = None,
    at_least: AtLeast = None,
    consistent: Consistent = False,
    snapshot: Snapshot = None,
    wait: Wait = None,
) -> Freshness:
    from flowstate.command.place import freshness

    return freshness(max_age, at_least or (), consistent, snapshot, wait)


def rows_form(*, as_json: AsJson = False, as_csv: AsCsv = False) -> str:
    if as_json and as_csv:
        raise InvalidFlow("rows are JSON or CSV, not both")
    return "json" if as_json else "csv" if as_csv else "text"


def form(*, as_json: AsJson = False) -> str:
    return rows_form(as_json=as_json)


#: Types of what is made of options, which typer never sees.
MADE: dict[str, object] = {"Place": object, "Freshness": object}
#: What commands have in common: a parameter of such a name stands for these options, and gets what is made of them.
SHARED: dict[str, Callable[..., object]] = {"asking": asking, "fresh": freshness, "rows_form": rows_form, "form": form}


def get(
    where: Where,
    view: View,
    key: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY...",
            help="A value for each column of the key; those of the window may be left out.",
            show_default=False,
        ),
    ],
    rows_form: str,
    fresh: Freshness,
    asking: Callable[[str], Place],
) -> int:
    from flowstate.command.asking import get

    return get(asking(where), view, key, fresh, rows_form)


def sql(
    where: Where,
    select: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUERY]",
            help="One SELECT; - reads it from standard input. Without one there is a prompt.",
            show_default=False,
        ),
    ] = None,
    *,
    rows_form: str,
    fresh: Freshness,
    asking: Callable[[str], Place],
) -> int:
    from flowstate.command.query import query, serving

    if select is None and sys.stdin is not None and sys.stdin.isatty() and os.isatty(1):
        from flowstate.command.prompt import Prompt

        with serving(asking(where)) as (reader, served):
            return Prompt(reader, served, fresh, rows_form).serve()
    query(asking(where), sys.stdin.read() if select in (None, "-") else str(select), fresh, rows_form)
    return 0


def tail(
    where: Where,
    view: View,
    *,
    key: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY...]", help="Of one key alone.", show_default=False)
    ] = None,
    form: str,
    resume: Annotated[
        str | None, typer.Option(help="Go on from the position with this 'resume'.", show_default=False)
    ] = None,
    asking: Callable[[str], Place],
) -> int:
    from flowstate.command.tail import tail

    with asking(where).opened() as (reader, _):
        tail(reader, view, key or (), resume, form)
    return 0


def views(where: Where, form: str, asking: Callable[[str], Place]) -> int:
    if form == "json":
        from flowstate.command.status import views
    else:
        from flowstate.command.asking import views
    views(asking(where))
    return 0


def status(where: Where, form: str, asking: Callable[[str], Place]) -> int:
    from flowstate.command.status import status

    status(asking(where), form)
    return 0


def top(
    where: Where,
    *,
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look for two seconds, which rates need, and end.")] = False,
    form: str,
    asking: Callable[[str], Place],
) -> int:
    from flowstate.command.top import top

    return top(asking(where), every, once, form)


def snapshots(
    where: Annotated[
        str, typer.Argument(metavar="WHERE", help="The folder or URL of the snapshots.", show_default=False)
    ],
    form: str,
    action: Annotated[
        Literal["list", "show", "diff", "open"],
        typer.Argument(
            help="list them; show N; diff N M: what came between two; open [N]: a prompt for queries over one."
        ),
    ] = "list",
    numbers: Annotated[
        list[int] | None, typer.Argument(metavar="[N] [M]", help="Their numbers.", show_default=False)
    ] = None,
) -> int:
    from flowstate.command.place import Place

    place, given = Place(where), numbers or []
    if action == "list" and not given:
        from flowstate.command.status import snapshots

        snapshots(place, form)
        return 0
    from flowstate.command.snapshots import checked, diff, open_prompt, show

    url = checked(place, action, given)
    match action:
        case "show":
            show(url, given[0], form)
        case "diff":
            diff(url, given[0], given[1], form)
        case "open":
            return open_prompt(url, given[0] if given else None)
    return 0


def explain(
    flow: Annotated[str, typer.Argument(help="Where the flow is: module:name or file.py:name.", show_default=False)],
    form: str,
    *,
    settings: Settings = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="A flowchart of Mermaid.")] = False,
    svg: Annotated[bool, typer.Option("--svg", help="A picture.")] = False,
) -> int:
    if mermaid + svg + (form == "json") > 1:
        raise InvalidFlow("a flow is explained in one way: --mermaid, --svg or --json")
    from flowstate.command.explain import explain

    explain(flow, "mermaid" if mermaid else "svg" if svg else form, settings or ())
    return 0


def doctor(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FLOW] [WHERE]",
            help="A flow (module:name or file.py:name), and where a job is that runs; each may be left out.",
            show_default=False,
        ),
    ] = None,
    *,
    snapshots: Annotated[
        str | None, typer.Option("--snapshots", help="Folder or URL of snapshots to try.", show_default=False)
    ] = None,
    bootstrap: Annotated[str | None, typer.Option(help="A Kafka broker to try: host:9092.", show_default=False)] = None,
    settings: Settings = None,
    topic: Annotated[list[str] | None, typer.Option(help="A topic that it should have.", show_default=False)] = None,
    form: str,
    asking: Callable[[str], Place],
) -> int:
    from flowstate.command.doctor import doctor
    from flowstate.command.target import is_flow

    flows = [each for each in what or () if is_flow(each)]
    places = [each for each in what or () if not is_flow(each)]
    if len(flows) > 1 or len(places) > 1:
        raise InvalidFlow("one flow and one place at a time", got=what)
    place = asking(places[0]) if places else None
    return doctor(flows[0] if flows else None, settings or (), place, snapshots, bootstrap, topic or (), form)


def stop(
    where: Where,
    form: str,
    asking: Callable[[str], Place],
) -> int:
    from flowstate.command.stopping import stop

    return stop(asking(where), form)


HELP: dict[Callable[..., int], str] = {
    get: "The rows of one key, as they are now.\n\n"
    "A key takes the types of its columns: 00123 stays text where the column is text, times are ISO 8601 (in UTC without a zone), "
    "numbers must fit exactly. Put -- before a key that begins with a dash. "
    "A key that is not there is exit code 1 with nothing on standard output, as with grep." + CODES,
    sql: "Run one SELECT of DuckDB over the views, and print its rows. Without one: a prompt, with history and completion."
    + CODES,
    tail: "The rows of a view, and then what changes in them, until Ctrl-C.\n\n"
    "It also ends, with exit code 0, when nobody reads its output any more." + CODES,
    views: "The views of a job: their columns, types and keys." + CODES,
    status: "What is away, late or refused, and why; then partitions, positions, sinks and snapshots." + CODES,
    top: "A job as it is, again and again: throughput, lag, watermarks, keys, memory, snapshots, sinks, and in words what is away, late or "
    "refused, and why.\n\nThe job is followed when it moves. q or Ctrl-C ends it. Where nobody sees it, a line a look. "
    "Who may not control the job sees less." + CODES,
    snapshots: "The saved snapshots of all partitions at one position: list them, oldest first; show one; what came between two; query one."
    + CODES,
    explain: "What a flow is, as its plan knows it: sources, keys, windows, views, sinks. Nothing is connected or started."
    + CODES,
    doctor: "What keeps a job from running, or will, and what to do: this machine, and a flow, its snapshots, its log and a job, as far as "
    "they are named.\n\nExit code 0: nothing is wrong. 1: something is. 2: it was called in a wrong way.",
    stop: "End a job in order, with a last snapshot; flowstate run resumes it. It needs the right to control the job, and asks for nothing "
    "else." + CODES,
}


def register(app: typer.Typer) -> None:
    for command, text in HELP.items():
        app.command(command.__name__, help=text)(called(command))


def called(command: Callable[..., int]) -> Callable[..., None]:
    """`command` as typer calls it: with the options of `SHARED` in the place of what it gets of them."""
    made: dict[str, list[str]] = {}
    parameters: list[inspect.Parameter] = []
    for each in inspect.signature(command, eval_str=True, locals=MADE).parameters.values():
        found = [each]
        if each.name in SHARED:
            found = [*inspect.signature(SHARED[each.name], eval_str=True, locals=MADE).parameters.values()]
            made[each.name] = [option.name for option in found]
        parameters += (option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in found)

    def call(**given: object) -> None:
        def work() -> int:
            for name, options in made.items():
                given[name] = SHARED[name](**{option: given.pop(option) for option in options})
            return command(**given)

        run(work)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return call


def run(work: Callable[[], int]) -> None:
    """Ends the process with what `work` gives, and with a sentence instead of a traceback. Ctrl-C ends it as it ends any other command of
    a shell, at once: there is nothing to put in order."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.stdout is None:  # closed: its number may be that of a connection soon, which is not to be written to
        say("standard output is closed")
        os._exit(1)
    try:
        code = work()
    except BrokenPipeError:  # whoever read has seen enough
        code = 0
    except FlowstateError as error:
        from flowstate_flight.fault import Refused

        say(str(error))
        code = 2 if isinstance(error, InvalidFlow) and not isinstance(error, Refused) else 1
    except OSError as error:
        say(f"what was found could not be written: {error.strerror or error}")
        code = 1
    # Nothing of what was written waits in a buffer. What is left are threads, some of which may still wait for a worker that hangs.
    os._exit(code)


def say(text: str) -> None:
    """To standard error, where it mixes with no rows."""
    if sys.stderr is not None:  # without one, print would take standard output
        with contextlib.suppress(OSError):  # nobody is there to be told
            print(f"flowstate: {text}", file=sys.stderr, flush=True)
