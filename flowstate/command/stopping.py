"""``flowstate stop``: the supervisor of a job ends it, with a last snapshot, by way of any worker or gateway."""

from __future__ import annotations

import json

from flowstate.command.ask import say
from flowstate.command.place import Place
from flowstate.command.rows import write
from flowstate.errors import Unavailable
from flowstate_flight.controlling import controlled


def stop(place: Place, kind: str) -> int:
    """0 when it has ended. `kind`: text or json. Raises InvalidFlow without the right to it, Unavailable if it is down already."""
    with place.opened() as (reader, _):
        try:
            told = controlled(reader, "stop")
        except Unavailable as error:
            message = f"the job does not run here, or does not answer ({error.message}); nothing was stopped"
            raise Unavailable(message, job=reader.directory().job) from error
    snapshot = (told.get("saved_cut") or {}).get("number")
    for topic, text in told.get("problems", {}).items():
        say(f"{topic}: {text}")
    if kind == "json":
        ended = {"job": told["name"], "state": told["state"], "run": told.get("run"), "snapshot": snapshot}
        write(json.dumps(ended, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    else:
        saved = f"snapshot {snapshot} has everything" if snapshot is not None else "nothing was saved"
        write(f"job {told['name']!r} is {told['state']}: {saved}\n".encode())
    return 0 if told["state"] in ("stopped", "finished") else 1
