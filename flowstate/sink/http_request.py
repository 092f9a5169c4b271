"""What is asked for: the URL of a row, the body, the headers. All of it is a function of the staged rows and the options."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urlsplit

import pyarrow as pa

from flowstate.errors import InvalidFlow
from flowstate.plan.spec import EPOCH, REVISION
from flowstate.sink import json_text

_OURS = ("idempotency-key", "flowstate-epoch", "flowstate-revision", "content-length", "transfer-encoding", "host")


class Request(NamedTuple):
    """Rows ``[first, first + rows)``; without a `target`, they have none, for the `reason`."""

    first: int
    rows: int
    target: str | None
    body: bytes
    headers: Mapping[str, str]
    reason: str = ""


class Template:
    """A URL whose path and query may name columns: ``https://billing/invoices/{customer}``."""

    def __init__(self, url: str) -> None:
        # Raised outside of the `except`: what was caught quotes the URL, which may hold a secret.
        parsed = _parsed(url)
        if parsed is None:
            message = "this is no URL; give for example 'https://host/path', or '.../{column}' with names of columns"
            raise InvalidFlow(message)
        self.parts, self.place = parsed
        head = self.parts[0][0]
        if len(self.parts) > 1 and not any(each in head.partition("://")[2] for each in "/?"):
            raise InvalidFlow("columns may stand in the path and the query of a URL, not in the host")
        if self.place.scheme not in ("http", "https") or not self.place.hostname:
            raise InvalidFlow("sink_http takes an http:// or https:// URL", scheme=self.place.scheme)
        if self.place.username is not None or self.place.password is not None or "@" in self.place.netloc:
            message = "credentials do not belong into a URL; give them in headers="
            raise InvalidFlow(message, host=self.place.hostname)
        if "#" in url or any(character <= " " for character in url):
            raise InvalidFlow("the URL has a space or a fragment; percent-encode it", host=self.place.hostname)
        self.columns = tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def targets(self, rows: pa.Table) -> list[str | None]:
        """Path and query of each row; None where a value would make it the URL of something else."""
        first = self.place.path or "/"
        if self.place.query or self.parts[0][0].endswith("?"):
            first += f"?{self.place.query}"
        values = {name: _texts(rows[name]) for name in self.columns}
        found: list[str | None] = []
        for row in range(rows.num_rows):
            target: str | None = first
            for index, (text, name) in enumerate(self.parts):
                if index and target is not None:
                    target += quote(text, safe="%/:?&=+,;@!$'()*~")
                if name is not None and target is not None:
                    value = values[name][row]
                    target = None if value in (None, "", ".", "..") else target + quote(str(value), safe="")
            found.append(target)
        return found


def _parsed(url: str) -> tuple[list[tuple[str, str | None]], SplitResult] | None:
    """Texts of the URL, each with the name of the column that follows it, and the place that the first text leads to."""
    parts: list[tuple[str, str | None]] = []
    try:
        for text, name, form, conversion in string.Formatter().parse(url):
            if form or conversion or name == "":
                return None
            parts.append((text, name))
        place = urlsplit(parts[0][0] if parts else "")
        return (parts, place) if parts and place.port != 0 else None
    except ValueError:
        return None


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    found: list[str | None] = []
    for chunk in column.chunks:
        for text in json_text.texts(chunk).to_pylist():
            found.append(None if text == "null" else json.loads(text) if text.startswith('"') else text)
    return found


def requests(
    rows: pa.Table, template: Template, headers: Mapping[str, str], batch: int, name: str, changes: bool
) -> list[Request]:
    """`name` is that of the staged object, and begins every idempotency key; after it comes the number of the first row."""
    bodies = json_text.rows(rows)
    if batch > 1:
        (target,) = template.targets(rows.slice(0, 1))
        return [
            Request(
                first,
                len(bodies[first : first + batch]),
                target,
                b"[" + b",".join(bodies[first : first + batch]) + b"]",
                {**headers, "Idempotency-Key": f"{name}-{first}"},
            )
            for first in range(0, len(bodies), batch)
        ]
    targets = template.targets(rows)
    versions: Sequence[Mapping[str, str]] = [{}] * len(bodies)
    if changes and EPOCH in rows.schema.names and REVISION in rows.schema.names:
        pairs = zip(rows[EPOCH].to_pylist(), rows[REVISION].to_pylist(), strict=True)
        versions = [{"Flowstate-Epoch": str(epoch), "Flowstate-Revision": str(revision)} for epoch, revision in pairs]
    why = "null, empty or a dot in a column of the URL"
    return [
        Request(row, 1, target, body, {**headers, **version, "Idempotency-Key": f"{name}-{row}"}, why)
        for row, (target, body, version) in enumerate(zip(targets, bodies, versions, strict=True))
    ]


def checked_headers(given: object) -> dict[str, str]:
    """The user's headers beside the usual ones. No message shows a value."""
    if given is not None and not isinstance(given, Mapping):
        raise InvalidFlow("headers= is a dict of names and texts")
    headers = {"Content-Type": "application/json", "User-Agent": "flowstate", "Accept": "*/*"}
    for name, value in (given or {}).items():
        if not isinstance(name, str) or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise InvalidFlow("this is no name of a header", header=name)
        if name.lower() in _OURS:
            raise InvalidFlow("this header is set by the sink; leave it out of headers=", header=name)
        if not isinstance(value, str) or not value.isprintable() or not value.isascii():
            raise InvalidFlow("a header's value is printable ASCII text without line ends", header=name)
        headers = {each: text for each, text in headers.items() if each.lower() != name.lower()}
        headers[name] = value
    return headers
