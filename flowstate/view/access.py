"""Who is let in, read from a file or a dict: principals by the hashes of their credentials, and what is granted to each.

In TOML::

    login = "12h"                            # how long a login by password lasts
    signing_key = "at least 32 characters"   # only where several services that are started apart shall accept each other's logins

    [principals.dashboard]
    tokens = ["sha256:..."]                  # from `flowstate token`, or Access.make_token()
    [[principals.dashboard.grants]]
    actions = ["read", "sql"]
    views = ["monthly_subtotals"]            # left out: all

    [principals.anna]
    password = "scrypt:..."                  # from `flowstate password`, or Access.hash_password(...)
    certificates = ["anna.example.org"]      # subject alternative name of a client certificate (mutual TLS)
    expires = 2027-01-01                     # from then on nobody is anna any more
    [[principals.anna.grants]]
    actions = ["read", "sql"]
    rows = {customer = "anna"}               # only rows that hold this; several values as a list

The file holds hashes alone. Whoever can write it decides who is let in; who can read it learns nothing that opens a door, but for
`signing_key`. What is changed in it holds for whatever is asked two seconds later (`access_file`).
"""

from __future__ import annotations

import binascii
import datetime as dt
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pyarrow.compute as pc

from flowstate.clock import Clock, SystemClock
from flowstate.errors import InvalidFlow, Unavailable, did_you_mean
from flowstate.plan.window import duration
from flowstate.view import rights
from flowstate.view.access_file import AccessFile
from flowstate.view.rights import ACTIONS, Grant, Principal

log = logging.getLogger("flowstate.access")

TOKEN, LOGIN = "fst_", "fsl_"  # how tokens begin: those that are given out, and those of a login
LONGEST = 4096  # characters of a credential
SCRYPT = (1 << 14, 8, 1)  # 16 MB and about 40 ms per password
LOGINS, PATIENCE = 2, 5.0  # logins that are checked at once, and seconds that another waits for its turn
_PLAIN = (type(None), bool, int, float, str, bytes, Decimal, dt.date, dt.time)
_FIELDS = {"tokens", "password", "certificates", "expires", "grants"}


@dataclass(frozen=True)
class _Known:
    """One principal of the file; `password` as it stands there, `expires` in Unix time."""

    principal: Principal
    password: str | None = field(repr=False)
    expires: float | None


class Access(rights.Access):
    """Principals by credential. It may be pickled, so that all workers of a job accept the same, also each other's logins.

    One that was made `from_file` follows its file: a `Principal` stays the same object for as long as its grants do, so whoever keeps one
    sees by a comparison whether its rights have changed."""

    def __init__(self, config: Mapping[str, Any], *, clock: Clock | None = None) -> None:
        """`config` is what the file holds. Raises InvalidFlow, naming the principal and the field, never a credential."""
        self._clock = clock or SystemClock()
        self._random = secrets.token_bytes(32)
        self._file: AccessFile | None = None
        self._held = _Rights(config, self._random)
        self._logins = threading.Semaphore(LOGINS)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, clock: Clock | None = None) -> Access:
        """Read a TOML file (see this module), and again when it has changed and somebody asks (`access_file`). Raises InvalidFlow."""
        file = AccessFile(path)
        access = cls(file.read(), clock=clock)
        access._file = file
        return access

    @staticmethod
    def make_token() -> tuple[str, str]:
        """A new bearer token, for its holder, and the hash of it, for `tokens`."""
        token = TOKEN + secrets.token_urlsafe(32)
        return token, "sha256:" + hashlib.sha256(token.encode()).hexdigest()

    @staticmethod
    def hash_password(password: str) -> str:
        """What stands for a password in the file, with a salt of its own."""
        if not isinstance(password, str) or not 8 <= len(password) <= LONGEST:
            raise InvalidFlow("a password has at least 8 characters")
        salt = secrets.token_bytes(16)
        found = _scrypt(password, *SCRYPT, salt)
        return ":".join(["scrypt", *map(str, SCRYPT), b64encode(salt).decode(), b64encode(found).decode()])

    def of_token(self, token: str) -> Principal | None:
        raw = _bytes(token)
        if raw is None:
            return None
        if token.startswith(LOGIN):
            return self._of_login(token)
        digest, held = hashlib.sha256(raw).digest(), self._rights()
        # Looking up a digest tells nobody how near a guess was: a guess cannot be steered towards one.
        name = held.tokens.get(digest)
        return None if name is None else self._valid(held, name)

    def login(self, user: str, password: str) -> str | None:
        """Raises Unavailable while too many others log in."""
        held = self._rights()
        known = held.known.get(user)
        stored = known.password if known is not None else None
        cost, blocks, lanes, salt, wanted = _parts(stored or _NOBODY)
        if not self._logins.acquire(timeout=PATIENCE):
            raise Unavailable("too many log in at once; try again", retry_after=1.0)
        try:
            given = password if _bytes(password) is not None else ""
            right = hmac.compare_digest(_scrypt(given, cost, blocks, lanes, salt), wanted)
        finally:
            self._logins.release()
        if not right or stored is None or self._valid(held, user) is None:
            return None
        until = self._clock.wall() + held.login_for
        said = urlsafe_b64encode(json.dumps([user, until]).encode()).decode()
        return f"{LOGIN}{said}.{held.sign(said, stored)}"

    def of_certificate(self, identity: str) -> Principal | None:
        held = self._rights()
        name = held.certificates.get(identity)
        return None if name is None else self._valid(held, name)

    @property
    def fingerprint(self) -> str:
        """Tells this access from another with other principals, and tells nothing about either."""
        text = json.dumps(self._rights().config, sort_keys=True, default=str)
        return hmac.new(b"flowstate access", text.encode(), hashlib.sha256).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"<access of {len(self._held.known)} principals>"

    def __getstate__(self) -> dict[str, Any]:
        file = self._file
        return {"config": self._held.config, "random": self._random, "file": None if file is None else str(file.path)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["config"])  # type: ignore[misc]
        self._random = state["random"]
        self._held = _Rights(state["config"], self._random)
        self._file = None if state["file"] is None else AccessFile(state["file"])

    def _rights(self) -> _Rights:
        """Those of now."""
        config = None if self._file is None else self._file.news(self._clock)
        if self._file is not None and config is not None:
            try:
                self._held = _Rights(config, self._random, self._held)
                log.info("the file of the access was read anew: %d principals", len(self._held.known))
            except InvalidFlow as error:
                self._file.refused(str(error))
            except Exception as error:  # its text may hold what stands in the file
                self._file.refused(type(error).__name__)
        return self._held

    def _of_login(self, token: str) -> Principal | None:
        said, _, signature = token.removeprefix(LOGIN).partition(".")
        held = self._rights()
        try:
            user, until = json.loads(urlsafe_b64decode(said))
            known = held.known[user]
            if known.password is None or not isinstance(until, int | float):
                return None
            signed = hmac.compare_digest(signature.encode(), held.sign(said, known.password).encode())
        except (ValueError, KeyError, TypeError, binascii.Error, RecursionError):
            return None
        return self._valid(held, user) if signed and self._clock.wall() < until else None

    def _valid(self, held: _Rights, name: str) -> Principal | None:
        known = held.known[name]
        return known.principal if known.expires is None or self._clock.wall() < known.expires else None


class _Rights:
    """What one text of the file says. It never changes, so a request sees one text or the next, and nothing between."""

    def __init__(self, config: Mapping[str, Any], random: bytes, before: _Rights | None = None) -> None:
        """`random` signs logins where the file has no key. Raises InvalidFlow."""
        self.config = dict(config)
        unknown = sorted(set(config) - {"login", "signing_key", "principals"})
        if unknown:
            raise InvalidFlow(
                f"the access has an unknown field {unknown[0]!r}; it has login, signing_key and principals"
            )
        given = config.get("signing_key")
        if given is not None and (not isinstance(given, str) or len(given) < 32):
            raise InvalidFlow("signing_key is a text of at least 32 characters; secrets.token_urlsafe(32) makes one")
        self._signing = random if given is None else hashlib.sha256(given.encode()).digest()
        self.login_for = duration(config.get("login", "12h")) / 1e6
        self.known: dict[str, _Known] = {}
        self.tokens: dict[bytes, str] = {}
        self.certificates: dict[str, str] = {}
        principals = config.get("principals")
        if not isinstance(principals, Mapping) or not principals:
            raise InvalidFlow("the access has no principals; nobody would be let in")
        for name, each in principals.items():
            self._take(str(name), each)
        for name, known in (before.known if before is not None else {}).items():
            now = self.known.get(name)
            if before is not None and now is not None and before.grants(name) == self.grants(name):
                self.known[name] = replace(now, principal=known.principal)

    def grants(self, name: str) -> str:
        """What is granted to a principal, told from everything else: in Python 1 equals true."""
        return repr(self.config["principals"][name]["grants"])

    def sign(self, said: str, password: str) -> str:
        """A login ends with the password that it was made by."""
        return hmac.new(self._signing, f"{said}\n{password}".encode(), hashlib.sha256).hexdigest()

    def _take(self, name: str, given: Any) -> None:
        if not name.isprintable() or not name or ":" in name:
            raise InvalidFlow("the name of a principal is a printable text without ':'")
        if not isinstance(given, Mapping):
            raise InvalidFlow("a principal has grants, and tokens, a password or certificates", principal=name)
        for each in given:
            if each not in _FIELDS:
                raise InvalidFlow(f"a principal has no field {each!r}{did_you_mean(each, _FIELDS)}", principal=name)
        for token in _texts(name, given, "tokens"):
            if not re.fullmatch("sha256:[0-9a-f]{64}", token):
                raise InvalidFlow(
                    "'tokens' holds hashes, 'sha256:' and 64 digits; see Access.make_token", principal=name
                )
            if self.tokens.setdefault(bytes.fromhex(token[7:]), name) != name:
                raise InvalidFlow("a token belongs to two principals", principal=name)
        for identity in _texts(name, given, "certificates"):
            if self.certificates.setdefault(identity, name) != name:
                raise InvalidFlow("a certificate belongs to two principals", principal=name)
        password = given.get("password")
        if password is not None:
            try:
                _parts(password)
            except (ValueError, TypeError, AttributeError):
                raise InvalidFlow("'password' holds a hash; see Access.hash_password", principal=name) from None
        grants = given.get("grants")
        if not isinstance(grants, list) or not all(isinstance(each, Mapping) for each in grants):
            raise InvalidFlow("'grants' is a list of tables with actions, views and rows", principal=name)
        principal = Principal(name, tuple(_grant(name, each) for each in grants))
        self.known[name] = _Known(principal, password, _time(name, given.get("expires")))


def _grant(name: str, given: Mapping[str, Any]) -> Grant:
    for each in given:
        if each not in ("actions", "views", "rows"):
            raise InvalidFlow(f"a grant has actions, views and rows, and no {each!r}", principal=name)
    actions = _texts(name, given, "actions")
    if not actions or set(actions) - set(ACTIONS):
        raise InvalidFlow(f"'actions' of a grant are some of {', '.join(ACTIONS)}", principal=name)
    views = frozenset(_texts(name, given, "views")) if "views" in given else None
    return Grant(frozenset(each for each in ACTIONS if each in actions), views, _rows(name, given.get("rows")))


def _rows(name: str, given: Any) -> pc.Expression | None:
    """Rows that hold, in every column that is named, one of its values."""
    if given is None:
        return None
    if not isinstance(given, Mapping) or not given:
        raise InvalidFlow("'rows' of a grant names columns and their values", principal=name)
    whole: pc.Expression | None = None
    for column, values in given.items():
        one: pc.Expression = pc.scalar(False)
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, _PLAIN):
                raise InvalidFlow("'rows' of a grant holds plain values", principal=name, column=column)
            one = one | (pc.field(column).is_null() if value is None else pc.field(column) == pc.scalar(value))
        whole = one if whole is None else whole & one
    return whole


def _texts(name: str, given: Mapping[str, Any], field: str) -> list[str]:
    found = given.get(field, [])
    if not isinstance(found, list) or not all(isinstance(each, str) and each for each in found):
        raise InvalidFlow(f"'{field}' is a list of texts", principal=name)
    return found


def _time(name: str, given: Any) -> float | None:
    if given is None:
        return None
    if isinstance(given, dt.datetime):
        return (given if given.tzinfo else given.replace(tzinfo=dt.UTC)).timestamp()
    if isinstance(given, dt.date):
        return dt.datetime(given.year, given.month, given.day, tzinfo=dt.UTC).timestamp()
    raise InvalidFlow("'expires' is a date or a time", principal=name)


def _bytes(credential: str) -> bytes | None:
    try:
        return credential.encode() if len(credential) <= LONGEST else None
    except UnicodeEncodeError:
        return None


def _scrypt(password: str, cost: int, blocks: int, lanes: int, salt: bytes) -> bytes:
    room = 128 * blocks * (cost + lanes + 2) + (1 << 20)
    return hashlib.scrypt(password.encode(), salt=salt, n=cost, r=blocks, p=lanes, maxmem=room, dklen=32)


def _parts(stored: str) -> tuple[int, int, int, bytes, bytes]:
    """Of the hash of a password. Raises ValueError for anything else, and for one whose check would take too long."""
    kind, *numbers, salt, wanted = stored.split(":")
    cost, blocks, lanes = (int(each) for each in numbers)
    found = cost, blocks, lanes, b64decode(salt, validate=True), b64decode(wanted, validate=True)
    sound = (
        1 < cost <= 1 << 18
        and cost & (cost - 1) == 0
        and 0 < blocks <= 16
        and 0 < lanes <= 4
        and cost * blocks <= 1 << 20
    )
    if kind != "scrypt" or not sound or len(found[4]) != 32:
        raise ValueError
    return found


#: Stands for the password of who is not there, so that asking for them takes as long.
_NOBODY = ":".join(["scrypt", *map(str, SCRYPT), b64encode(bytes(16)).decode(), b64encode(bytes(32)).decode()])
