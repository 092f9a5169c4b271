"""S3 as a store."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from flowstate.errors import FlowstateError, InternalError, InvalidFlow, Unavailable
from flowstate.store import Bytes, Store, checked, pieces_of

_SECRET_NAME = re.compile("key|secret|token|password|credential", re.IGNORECASE)
# Refusals that another try may not meet.
_PASSING = (408, 409, 425, 429)
_PASSING_CODES = ("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch")

# Seconds for a whole operation, beside the time limits of its requests: a put that waits for "100 Continue" has none.
_LIMIT = 30.0
_SLOWEST = 1 << 20  # bytes per second that count as alive
_LOCK = threading.Lock()
_OPENED: dict[tuple[int, str], Any] = {}


class S3Store(Store):
    """A bucket, or a prefix in one. `storage_options` are s3fs's: key, secret, token, profile, endpoint_url, client_kwargs, ..."""

    def __init__(self, place: str, **storage_options: Any) -> None:
        bucket, _, prefix = place.partition("/")
        if "@" in bucket or "?" in place:
            message = "credentials and options do not belong into a URL; give them as storage options (key=, secret=, endpoint_url=)"
            raise InvalidFlow(message, url=f"s3://{place.rsplit('@', 1)[-1].split('?')[0]}")
        if not bucket:
            raise InvalidFlow("an s3:// URL names a bucket: s3://bucket/path", url=f"s3://{place}")
        self.root = "/".join([bucket, *filter(None, prefix.split("/"))])
        self.url = f"s3://{self.root}"
        self._options = storage_options

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_s3, (self.root, self._options)

    def _filesystem(self) -> Any:
        # s3fs does not survive a fork, so another process opens its own. Making one takes 0.3 s, so stores share them.
        key = (os.getpid(), repr(sorted(self._options.items())))
        with _LOCK:
            if key not in _OPENED:
                try:
                    import s3fs
                except ImportError as error:
                    raise InvalidFlow("s3:// needs s3fs; install it with: pip install 'flowstate[s3]'") from error
                config = {"connect_timeout": 4, "read_timeout": 20, "retries": {"total_max_attempts": 1}}
                options = {**self._options, "config_kwargs": {**config, **self._options.get("config_kwargs", {})}}
                with self._translated(""):
                    filesystem = s3fs.S3FileSystem(**options, use_listings_cache=False, skip_instance_cache=True)
                filesystem.retries = 2
                _OPENED[key] = filesystem
            return _OPENED[key]

    def create(self, path: str, data: Bytes | Sequence[Bytes]) -> bool:
        name = f"{self.root}/{checked(path)}"
        pieces = pieces_of(data)
        whole = pieces[0] if len(pieces) == 1 and isinstance(pieces[0], bytes) else b"".join(pieces)
        filesystem = self._filesystem()
        with self._translated(name):
            for attempt in range(5):
                try:
                    filesystem.pipe_file(name, whole, mode="create", timeout=_bound(len(whole)))
                    return True
                except FileExistsError:
                    return False
                except OSError as error:
                    # Two conditional puts at the same moment: S3 answers both with 409 and wants them repeated.
                    if (
                        _s3_answer(error)[0] not in ("ConditionalRequestConflict", "OperationAborted", "409")
                        or attempt == 4
                    ):
                        raise
        raise InternalError("unreachable")

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        name = f"{self.root}/{checked(path)}"
        filesystem = self._filesystem()
        if start is not None and end is not None and start >= end:
            return b""
        with self._translated(name):
            try:
                size = None if end is None else end - (start or 0)
                return bytes(filesystem.cat_file(name, start=start, end=end, timeout=_bound(size)))
            except OSError as error:
                if _s3_answer(error)[0] in ("InvalidRange", "416"):
                    return b""
                raise

    def list(self, prefix: str = "") -> list[str]:
        name = f"{self.root}/{prefix.strip('/')}".rstrip("/")
        filesystem = self._filesystem()
        try:
            with self._translated(name):
                found = filesystem.ls(name, detail=False, refresh=True, timeout=_bound(0))
        except FileNotFoundError:
            return []
        return sorted(
            {each[len(name) + 1 :].rstrip("/") for each in found if each.startswith(f"{name}/") and each != f"{name}/"}
        )

    def delete(self, path: str) -> None:
        name = f"{self.root}/{checked(path)}"
        filesystem = self._filesystem()
        with contextlib.suppress(FileNotFoundError), self._translated(name):
            filesystem.rm_file(name, timeout=_bound(0))

    def exists(self, path: str) -> bool:
        bucket, _, key = f"{self.root}/{checked(path)}".partition("/")
        filesystem = self._filesystem()
        try:
            with self._translated(f"{bucket}/{key}"):
                filesystem.call_s3("head_object", Bucket=bucket, Key=key, timeout=_bound(0))
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except FlowstateError:
            raise
        except Exception as error:
            self._raise(error, name)

    def _raise(self, error: Exception, name: str) -> NoReturn:
        code, reason = _s3_answer(error)[0], f"{type(error).__name__}: {error}"
        shown = [secret for secret in _secrets(self._options) if secret in reason]
        for secret in shown:
            reason = reason.replace(secret, "***")
        cause = None if shown else error
        facts = {"url": f"s3://{name}", "reason": reason}
        if code == "NoSuchBucket":
            raise InvalidFlow("there is no such bucket; create it, or correct the URL", **facts) from cause
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"s3://{name}") from None
        if 400 <= _s3_answer(error)[1] < 500 and _s3_answer(error)[1] not in _PASSING and code not in _PASSING_CODES:
            message = "S3 refused; check bucket, region, credentials, and that they may put, get, list and delete"
            raise InvalidFlow(message, code=code, **facts) from cause
        if "Credential" in type(error).__name__ or isinstance(error, TypeError | ValueError):
            message = "S3 cannot be used like this; check credentials (key=, secret=, or AWS's own variables) and storage options"
            raise InvalidFlow(message, **facts) from cause
        raise Unavailable("S3 does not answer; check endpoint_url and the network", retry_after=2.0, **facts) from cause


def _bound(size: int | None) -> float:
    """Time limit of an operation on `size` bytes; None when the size is not known."""
    return _LIMIT * 20 if size is None else _LIMIT + size / _SLOWEST


def _open_s3(root: str, options: dict[str, Any]) -> S3Store:
    return S3Store(root, **options)


def _s3_answer(error: BaseException) -> tuple[str, int]:
    """S3's own code and the HTTP status of an error that s3fs translated; ('', 0) when it is no answer of S3."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response.get("Error", {}).get("Code", "")), int(status)
        seen = seen.__cause__
    return "", 0


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in {**options, "environment": os.environ}.items():
        if isinstance(value, Mapping):
            if name != "environment":
                yield from _secrets({**value})
            else:
                yield from (value[each] for each in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN") if value.get(each))
        elif isinstance(value, str) and value and _SECRET_NAME.search(name):
            yield value
