"""The pages of docs/ do what they say: their code runs, page by page, and prints what stands below it; and they are a book without a
broken link.

A piece of ``python`` or ``console`` is run in the order of the page, or beside the rest of it, if a comment says so; with a title it is
a file. ``text`` right below a piece is what that prints, where ``...`` is anything. Other pieces are looked at by what they are
(``json``, ``toml``, ``yaml``, ``ini``). `docs/flight.md` has a test of its own.
"""

from __future__ import annotations

import configparser
import doctest
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from kafka_broker import KafkaBroker
from s3_server import S3Server, s3_server

from flowstate.testing.tormentor.cluster import free_port

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if page.name != "flight.md" and "decisions" not in page.parts)
#: What a page says that wants to ask a running job.
JOB = "<!-- with the job of start.md -->"
BESIDE = "<!-- runs beside what follows -->"
FENCE = re.compile(
    rf"^(?:({BESIDE})\n)?( *)```([a-z]*)(?: title=\"([^\"]+)\")?\n(.*?)^\2```$", re.MULTILINE | re.DOTALL
)


RUN = ("python", "console", "beside")


class Piece(NamedTuple):
    kind: str
    title: str
    text: str
    #: What stands between it and the piece before is nothing but white space.
    joins: bool


def pieces_of(page: Path) -> list[Piece]:
    text = page.read_text()
    found, end = [], 0
    for match in FENCE.finditer(text):
        beside, indent, kind, title, body = match.groups()
        lines = "".join(line.removeprefix(indent) for line in body.splitlines(keepends=True))
        found.append(Piece("beside" if beside else kind, title or "", lines, not text[end : match.start()].strip()))
        end = match.end()
    return found


def run(page: Path, folder: Path, instead: Mapping[str, str], environment: Mapping[str, str]) -> None:
    pieces = pieces_of(page)
    if JOB in page.read_text():
        pieces = [each for each in pieces_of(DOCS / "start.md") if each.title or each.kind == "beside"] + pieces
    run = [(number, each) for number, each in enumerate(pieces) if each.kind in RUN or each.title]
    if not run:
        return
    asked = json.dumps([each._asdict() for _, each in run])
    instead = {**instead, **{port: str(free_port()) for port in ("8000", "8080", "8815")}}
    for what, by in instead.items():
        asked = asked.replace(what, by)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "documented.py")],
        input=asked,
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = dict(zip((number for number, _ in run), json.loads(done.stdout), strict=True))
    checker = doctest.OutputChecker()
    for number, each in enumerate(pieces):
        if each.kind == "text" and each.joins:
            got = said[number - 1]
            for what, by in instead.items():
                got = got.replace(by, what)
            assert checker.check_output(each.text, got, doctest.ELLIPSIS), f"below\n{pieces[number - 1].text}\n{got}"


def named(page: Path) -> str:
    return str(page.relative_to(DOCS))


def needs(page: Path) -> str:
    text = page.read_text()
    return (
        "kafka"
        if "localhost:9092" in text
        else "s3"
        if "s3://" in "".join(each.text for each in pieces_of(page))
        else ""
    )


@pytest.mark.parametrize("page", [each for each in PAGES if not needs(each)], ids=named)
def test_a_page(page: Path, tmp_path: Path) -> None:
    run(page, tmp_path, {}, {})


@pytest.mark.kafka
@pytest.mark.parametrize("page", [each for each in PAGES if needs(each) == "kafka"], ids=named)
def test_a_page_with_kafka(page: Path, tmp_path: Path, kafka: KafkaBroker) -> None:
    run(page, tmp_path, {"localhost:9092": kafka.bootstrap}, {})


def by_its_variables(server: S3Server) -> dict[str, str]:
    """What s3fs finds without being told."""
    return {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": server.storage_options["key"],
        "AWS_SECRET_ACCESS_KEY": server.storage_options["secret"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.mark.s3
@pytest.mark.parametrize("page", [each for each in PAGES if needs(each) == "s3"], ids=named)
def test_a_page_with_s3(page: Path, tmp_path: Path) -> None:
    with s3_server() as server:
        (server.folder / "billing").mkdir()
        run(page, tmp_path, {}, by_its_variables(server))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_is_not_run_is_well_formed(page: Path) -> None:
    for each in pieces_of(page):
        match each.kind:
            case "json":
                json.loads(each.text)
            case "toml":
                tomllib.loads(each.text)
            case "yaml":
                assert list(yaml.safe_load_all(each.text))
            case "ini":
                configparser.ConfigParser(strict=False, interpolation=None).read_string(each.text)
            case _:
                assert each.kind in (*RUN, "text", "csv", ""), "nobody knows how to look at it"


def test_the_book(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "scan_kafka" in (tmp_path / "api.html").read_text()
