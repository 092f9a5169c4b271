"""Runs the code of one page of docs/, in a folder of its own, and says what each piece of it printed.

    python documented.py < pieces.json > said.json

Pieces are ``{"kind", "title", "text"}``: ``python`` runs in this process, one piece after the other, as in a notebook; ``console`` runs by
bash, and ``beside`` beside what follows, until the page ends: it goes on when that has written a line. What has a title is
written to a file of that name and not run. What a piece prints is what it says; a piece that fails ends it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def beside(command: str) -> Iterator[None]:
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        assert process.stdout is not None
        try:
            if not (line := process.stdout.readline()) or "Traceback" in line:
                sys.exit(f"{command!r} says {line} {process.communicate()[0]}")
            yield
            os.killpg(process.pid, signal.SIGTERM)
            said = process.communicate(timeout=60)[0]
            if process.returncode not in (0, -signal.SIGTERM):
                sys.exit(f"{command!r} ended with {process.returncode}: {said}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    pieces, said = json.load(sys.stdin), []
    known: dict[str, Any] = {"__name__": "__documented__"}
    with contextlib.ExitStack() as stack:
        for number, piece in enumerate(pieces):
            said.append("")
            if piece["title"]:
                Path(piece["title"]).write_text(piece["text"])
            elif piece["kind"] == "beside":
                stack.enter_context(beside(piece["text"]))
            elif piece["kind"] == "console":
                done = subprocess.run(["bash", "-ec", piece["text"]], capture_output=True, text=True, timeout=120)
                if done.returncode:
                    sys.exit(
                        f"piece {number}, {piece['text']!r}, ended with {done.returncode}:\n{done.stdout}{done.stderr}"
                    )
                said[-1] = done.stdout
            else:
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    try:
                        exec(compile(piece["text"], f"piece {number}", "exec"), known)
                    except BaseException:
                        sys.exit(f"piece {number}:\n{piece['text']}\n{traceback.format_exc()}")
                said[-1] = printed.getvalue()
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
