"""The file that says who is let in."""

from __future__ import annotations

import datetime as dt
import inspect
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from guarded import (
    HASHED,
    PASSWORD,
)

import flowstate as fs
from flowstate.command.main import serving
from flowstate.errors import InvalidFlow

FILE = """
login = "2h"
[principals.dashboard]
tokens = ["{token}"]
[[principals.dashboard.grants]]
actions = ["read", "sql"]
views = ["subtotals"]
[[principals.dashboard.grants]]
actions = ["read"]
views = ["totals"]
rows = {{region = ["north", "south"], year = 2026, closed = true, day = 2026-01-02}}
[principals.anna]
password = "{password}"
expires = 2126-01-01
[[principals.anna.grants]]
actions = ["control"]
"""


def test_a_file(tmp_path: Path) -> None:
    made, hashed = fs.Access.make_token()
    file = tmp_path / "access.toml"
    file.write_text(FILE.format(token=hashed, password=HASHED))
    access = fs.Access.from_file(file)
    dashboard = access.of_token(made)
    assert dashboard is not None
    assert dashboard.views(["subtotals", "totals", "others"]) == ["subtotals", "totals"]
    assert dashboard.may("sql", "subtotals")
    assert not dashboard.may("sql", "totals")
    assert not dashboard.may("control")
    assert dashboard.rows("subtotals") is None
    day = dt.date(2026, 1, 2)
    table = pa.table({
        "region": ["north", "south", "west", None], "year": pa.array([2026] * 4, pa.int16()), "closed": [True] * 4, "day": [day] * 4,
    })  # fmt: skip
    assert table.filter(dashboard.rows("totals")).num_rows == 2
    assert access.login("anna", PASSWORD) is not None
    assert access.login("dashboard", PASSWORD) is None
    again = pickle.loads(pickle.dumps(access))
    assert again.fingerprint == access.fingerprint == fs.Access.from_file(file).fingerprint
    assert again.of_token(made).name == "dashboard"


SOUND = {"tokens": [fs.Access.make_token()[1]], "grants": [{"actions": ["read"]}]}
BAD: dict[str, tuple[Any, str]] = {
    "no principals": ({}, "no principals"),
    "a field": ({"principals": {"a": SOUND}, "acess": 1}, "unknown field 'acess'"),
    "a short key": ({"principals": {"a": SOUND}, "signing_key": "short-SECRET"}, "at least 32"),
    "a field of a principal": ({"principals": {"a": {**SOUND, "token": "SECRET"}}}, "did you mean 'tokens'"),
    "a plain token": ({"principals": {"a": {**SOUND, "tokens": ["SECRET"]}}}, "holds hashes"),
    "a plain password": ({"principals": {"a": {**SOUND, "password": "SECRET"}}}, "holds a hash"),
    "a dear password": ({"principals": {"a": {**SOUND, "password": "scrypt:1099511627776:8:1:SECRETA=:SECR"}}}, "holds a hash"),
    "no grants": ({"principals": {"a": {"tokens": SOUND["tokens"]}}}, "'grants' is a list"),
    "an unknown action": ({"principals": {"a": {"grants": [{"actions": ["SECRET"]}]}}}, "are some of read, sql, control"),
    "no actions": ({"principals": {"a": {"grants": [{"views": ["x"]}]}}}, "are some of read, sql, control"),
    "rows of no sense": ({"principals": {"a": {"grants": [{"actions": ["read"], "rows": {"x": {"SECRET": 1}}}]}}}, "plain values"),
    "no rows": ({"principals": {"a": {"grants": [{"actions": ["read"], "rows": {}}]}}}, "names columns"),
    "views of no sense": ({"principals": {"a": {"grants": [{"actions": ["read"], "views": "SECRET"}]}}}, "list of texts"),
    "expires": ({"principals": {"a": {**SOUND, "expires": "SECRET"}}}, "date or a time"),
    "two with one token": ({"principals": {"a": SOUND, "b": SOUND}}, "belongs to two"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_wrong_says_where_and_shows_nothing(what: str) -> None:
    given, says = BAD[what]
    with pytest.raises(InvalidFlow, match=says) as error:
        fs.Access(given)
    shown = str(error.value) + repr(error.value.facts)
    assert "SECRET" not in shown


def test_a_file_that_is_no_toml_shows_nothing(tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    file.write_text('signing_key = "SECRET-SECRET\n')
    with pytest.raises(InvalidFlow, match="no TOML") as error:
        fs.Access.from_file(file)
    assert "SECRET" not in str(error.value)
    with pytest.raises(InvalidFlow, match="cannot be read"):
        fs.Access.from_file(tmp_path / "none.toml")
    with pytest.raises(InvalidFlow, match="at least 8"):
        fs.Access.hash_password("short")


def test_credentials_are_made_on_the_command_line(tmp_path: Path) -> None:
    def run(*words: str, given: str = "") -> list[str]:
        program = [sys.executable, "-m", "flowstate.command", *words]
        done = subprocess.run(program, input=given, capture_output=True, text=True, timeout=60, check=True)
        assert not done.stderr
        return done.stdout.split()

    made, hashed = run("token")
    (password,) = run("password", given=f"{PASSWORD}\n")
    file = tmp_path / "access.toml"
    file.write_text(FILE.format(token=hashed, password=password))
    access = fs.Access.from_file(file)
    assert access.of_token(made) is not None
    assert access.login("anna", PASSWORD) is not None
    given = serving(str(file), None, None, None, None)
    assert (given["access"].fingerprint, given["tls"]) == (access.fingerprint, None)
    with pytest.raises(InvalidFlow, match="belong together"):
        serving(None, "certificate.pem", None, None, None)


def test_the_page_about_it_is_right() -> None:
    """Its file is one, and its calls have these arguments."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "security.md").read_text()
    (text,) = re.findall("```toml\n(.*?)```", page, re.DOTALL)
    made, hashed = fs.Access.make_token()
    access = fs.Access(tomllib.loads(text.replace("sha256:...", hashed).replace("scrypt:...", HASHED)))
    dashboard = access.of_token(made)
    assert dashboard is not None
    assert dashboard.views(["monthly_subtotals", "others"], "sql") == ["monthly_subtotals"]
    assert access.of_certificate("anna.example.org") is not None
    assert access.login("anna", PASSWORD) is not None
    for call, given in (
        (fs.start, {"access", "tls"}),
        (fs.connect, {"token", "login", "tls_root_certs"}),
        (fs.gateway, {"access", "tls", "token"}),
        (fs.Tls.from_files, {"certificate", "key", "roots", "clients"}),
    ):
        assert given <= set(inspect.signature(call).parameters)
