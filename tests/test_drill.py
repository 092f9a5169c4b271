"""The operator's drill: of failures that are caused for real, ``status``, ``top`` and the dashboard name the cause, in the same words."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client
from drill import KILLED, LATE, SHORTENED, SINK, STORE, UNREADABLE, Case, Site
from waiting import until

from flowstate.command.observer import Observer
from flowstate.command.place import Place
from flowstate.command.sight import Course
from flowstate.command.status import status
from flowstate.command.top_screen import plain, screen


@pytest.fixture
def site(client: Client, tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    site = Site(client, tmp_path / "site", disk=False)
    yield site
    site.close()


def same(words: str) -> str:
    """What does not change from one second to the next."""
    return re.sub(r"\d+", "#", re.sub(r"just now|in the last \d+ s|,? ?\(?for \d+ s\)?|^[\d.]+ s ago: ", "", words))


def named(site: Site, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    """By all three, in the same words."""
    page = until(lambda: case.of(site.page()), says=site.page)
    place = Place(str(site.snapshots))
    capfd.readouterr()
    status(place, "json")
    told = json.loads(capfd.readouterr().out)
    with place.opened() as (reader, saved):
        top = plain(screen(Observer(place, reader, saved).look(), Course(), 1000, 100, time.time())).splitlines()
    said = {
        "status": case.of([*told["troubles"], *told["happened"]]),
        "top": case.of([each.removeprefix("! ") for each in top]),
    }
    assert all(said.values()), (said, told["troubles"], top)
    assert {same(str(each)) for each in said.values()} == {same(page)} or case is KILLED, (said, page)


def test_each_failure_is_named_by_its_cause_and_what_is_mended_is_told(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    with SINK.cause(site):
        named(site, SINK, capfd)
        until(lambda: SINK.of(site.marks()), says=site.marks)
    with KILLED.cause(site):
        named(site, KILLED, capfd)
    until(lambda: KILLED.over(site.page()), says=site.page)
    until(lambda: SINK.over(site.page()), says=site.page)
    for case in (UNREADABLE, LATE, STORE, SHORTENED):
        with case.cause(site):
            named(site, case, capfd)
