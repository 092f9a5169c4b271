"""Which topic it is: the id that the brokers give a topic when it is made.

A topic that is deleted and made anew under its name is another log: its offsets begin again, and would be taken for those of the old one.
The id is part of what a split is known by (`SplitInfo.hint`); a reader gives no row of a partition before it has seen that the topic still
has it, and looks again after every trouble and every few seconds. Nothing here waits for the broker, except `topic_id`.

Between two looks a topic could be made anew *and* grow past the place of a reader that notices nothing: a fetch sees within a fraction of
a second that the offset is gone, so that many records would have to be written within that time. Brokers before Kafka 2.8, and some that
are not Kafka, have no ids; then only the offsets tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from flowstate.clock import Clock

AGAIN = 5.0  # seconds until a topic that was right is looked at again
RETRY = 1.0
REQUEST = 10.0
_GONE = {"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC"}
_NONE = "AAAAAAAAAAAAAAAAAAAAAA"  # the id of a broker that has no ids
#: Settings of a consumer, which another client would complain about.
_CONSUMER = ("auto.", "enable.auto.", "enable.partition.", "fetch.", "isolation.", "group.", "session.", "max.poll.")
_CONSUMER_TOO = ("check.crcs", "queued.min.messages", "queued.max.messages.kbytes", "max.partition.fetch.bytes")


def _admin(bootstrap: str, config: Mapping[str, Any]) -> AdminClient:
    settings = {
        name: value
        for name, value in config.items()
        if not name.startswith(_CONSUMER) and name not in _CONSUMER_TOO and not callable(value)
    }
    return AdminClient({**settings, "bootstrap.servers": bootstrap, "log_level": 0})


def _ask(admin: AdminClient, topic: str) -> Future[Any]:
    (future,) = admin.describe_topics(TopicCollection([topic]), request_timeout=REQUEST).values()
    return future


def _id_of(found: Any) -> str:
    """The id of a description; '' when the broker has none."""
    text = str(found.topic_id) if found.topic_id is not None else ""
    return "" if text == _NONE else text


def topic_id(bootstrap: str, config: Mapping[str, Any], topic: str, timeout: float) -> str | None:
    """The id of a topic, within `timeout` seconds; '' when it has none; None when the broker does not tell."""
    admin = _admin(bootstrap, config)
    try:
        return _id_of(_ask(admin, topic).result(timeout))
    except KafkaException as error:
        return None if error.args[0].name().startswith("_") else ""
    except TimeoutError:
        return None


class TopicWatch:
    """Looks at one topic again and again, without waiting. Used by one thread."""

    def __init__(self, bootstrap: str, config: Mapping[str, Any], topic: str, clock: Clock) -> None:
        self._place = bootstrap, config
        self._topic = topic
        self._clock = clock
        self._admin: AdminClient | None = None
        self._asked: Future[Any] | None = None
        self._outdated = False  # what is asked just now was asked before something happened
        self._next = 0.0
        #: The id at the last look; '' for none; None before the first look and after trouble.
        self.seen: str | None = None
        self.gone = False  # the broker says that there is no such topic

    def doubt(self) -> None:
        """What was seen may not hold any more; nor does an answer that is under way."""
        self.seen, self._next, self._outdated = None, 0.0, self._asked is not None

    def look(self) -> str | None:
        """The id as far as it is known now; None while it is not."""
        now = self._clock.monotonic()
        if self._asked is not None and self._asked.done():
            self._answered(self._asked, now)
            self._asked = None
        if self._asked is None and now >= self._next:
            self._outdated, self._next = False, now + RETRY
            try:
                if self._admin is None:
                    self._admin = _admin(*self._place)
                self._asked = _ask(self._admin, self._topic)
            except KafkaException:
                return self.seen
        return self.seen

    def _answered(self, future: Future[Any], now: float) -> None:
        if self._outdated:
            return
        try:
            self.seen, self._next, self.gone = _id_of(future.result()), now + AGAIN, False
        except KafkaException as error:
            name = error.args[0].name()
            self._next = now + RETRY
            if name in _GONE:
                self.seen, self.gone = None, True
            elif not name.startswith("_"):
                self.seen = ""  # the broker answers, and does not tell: offsets are all there is
