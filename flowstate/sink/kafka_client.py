"""Clients of the brokers that a sink writes to, and what their errors mean to a user."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewTopic

from flowstate.clock import Clock
from flowstate.errors import FlowstateError, InvalidFlow, Unavailable, did_you_mean

#: Seconds that one attempt waits for one answer, or for the next message to be acknowledged.
PATIENCE = 8.0

_DEFAULTS: Mapping[str, Any] = {
    "reconnect.backoff.max.ms": 1000,
    "socket.connection.setup.timeout.ms": 5000,
    "log_level": 0,
}
_PRODUCER: Mapping[str, Any] = {
    "linger.ms": 5,
    "compression.type": "lz4",
    # As Java's producers place keys: consumers that join two topics by key find them in partitions of one number.
    "partitioner": "murmur2_random",
    # What a publisher that died has open holds up readers until its successor comes, or this long.
    "transaction.timeout.ms": 30_000,
}
#: The promises of the sink rest on these.
_OURS: Mapping[str, tuple[Any, ...]] = {
    "enable.idempotence": (True, "true"),
    "acks": (-1, "-1", "all"),
    "request.required.acks": (-1, "-1", "all"),
    "isolation.level": ("read_committed",),
}
_FENCED = {
    "_FENCED", "PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH", "INVALID_PRODUCER_ID_MAPPING", "INVALID_TXN_STATE",
    "UNKNOWN_PRODUCER_ID",
}  # fmt: skip
_REFUSED = {"_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED", "_SSL", "UNSUPPORTED_SASL_MECHANISM"}
_TOO_LARGE = {"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_MSG_SIZE"}
_GONE = {"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION"}
_QUIET = logging.Logger("flowstate.sink.kafka")
_QUIET.addHandler(logging.NullHandler())
_SECRET = ("password", "secret", "token", "key", "jaas", "oauthbearer.config")


@dataclass(frozen=True)
class Target:
    """Where the rows go, and where their sequence is kept. `config` is librdkafka's, and may hold secrets: it is never shown."""

    topic: str
    commits: str
    bootstrap: str
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def check(self) -> None:
        for name, allowed in _OURS.items():
            if name in self.config and self.config[name] not in allowed:
                message = f"{name} cannot be changed: exactly once rests on it; leave it out of config="
                raise InvalidFlow(message, topic=self.topic)

    def producer(self, transactional_id: str, outages: Outages, failed: Any) -> Producer:
        prefix = self.config.get("transactional.id", "flowstate")
        settings = {
            **_PRODUCER,
            **self._settings(outages),
            "transactional.id": f"{prefix}-{transactional_id}",
            "delivery.report.only.error": True,
            "on_delivery": failed,
        }
        return self._made(Producer, settings)

    def consumer(self, outages: Outages, *, committed: bool) -> Consumer:
        settings = {
            "fetch.wait.max.ms": 50,
            "group.id": "flowstate",  # never joined
            **self._settings(outages),
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
        }
        return self._made(Consumer, settings)

    def admin(self, outages: Outages) -> AdminClient:
        return self._made(AdminClient, self._settings(outages))

    def _settings(self, outages: Outages) -> dict[str, Any]:
        ours = ("transactional.id", "enable.idempotence")
        config = {name: value for name, value in self.config.items() if name not in ours}
        # librdkafka shouts at being fenced, which is in the order of things. Who asks for its log gets it.
        quiet = {} if {"log_level", "debug", "logger"} & set(config) else {"logger": _QUIET}
        return {**_DEFAULTS, **quiet, **config, "bootstrap.servers": self.bootstrap, "error_cb": outages.note}

    def _made(self, kind: Any, settings: dict[str, Any]) -> Any:
        try:
            return kind(settings)
        except (KafkaException, ValueError, TypeError) as error:
            reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
            # No cause: it may quote a value.
            raise InvalidFlow(
                f"a kafka setting is refused: {self._clean(reason)}; correct config=", topic=self.topic
            ) from None

    def _clean(self, text: str) -> str:
        for name, value in self.config.items():
            if isinstance(value, str) and value and any(each in name.lower() for each in _SECRET):
                text = text.replace(value, "***")
        return text

    def error(self, error: KafkaError, outages: Outages, key: bytes | None = None) -> FlowstateError:
        """What an error means that is not a fence."""
        facts: dict[str, Any] = {"topic": self.topic}
        if key is not None:
            facts["key"] = key[:80].decode(errors="replace")
        for each in (error, *outages.errors):
            name = each.name()
            if name in _REFUSED:
                message = f"the broker refuses the connection ({each.str()}); correct the credentials and the security settings in config="
                return InvalidFlow(message, **facts)
            if name.endswith("AUTHORIZATION_FAILED"):
                message = (
                    f"these credentials may not do this ({each.str()}); grant them Write on the topics and on transactional"
                    " ids that begin with the prefix, and Read on the topic of commits"
                )
                prefix = self.config.get("transactional.id", "flowstate")
                return InvalidFlow(message, **facts, commits_topic=self.commits, prefix=prefix)
        name = error.name()
        if name in _TOO_LARGE:
            message = (
                "a row is too large for a kafka message; raise message.max.bytes in config= and max.message.bytes of the"
                " topic, or send less with select; if the topic refuses whole batches, lower batch.size in config="
            )
            return InvalidFlow(message, **facts)
        if name == "INVALID_RECORD":
            message = "the topic refuses the row; a compacted topic needs key="
            return InvalidFlow(message, **facts, reason=error.str())
        if name in _GONE:
            return InvalidFlow("the topic is gone; create it again, or correct topic=", **facts)
        if name == "INVALID_TRANSACTION_TIMEOUT":
            message = "transaction.timeout.ms is above what the broker allows; lower it in config="
            return InvalidFlow(message, **facts)
        message = (
            f"the kafka broker does not take the rows ({error.str()}); they wait in the snapshots and are sent again"
        )
        return Unavailable(message, retry_after=1.0, **facts, bootstrap=self.bootstrap)


class Outages:
    """What clients say about their connections beside their answers: a refused login is told only here."""

    def __init__(self) -> None:
        self.errors: list[KafkaError] = []

    def note(self, error: KafkaError) -> None:
        if not any(each.code() == error.code() for each in self.errors):
            self.errors.append(error)


def fenced(error: KafkaError) -> bool:
    return error.name() in _FENCED


class Topics:
    """Looks at the topics of a target, and creates that of the commits. Every question has an answer or an error within `PATIENCE`."""

    def __init__(self, target: Target, clock: Clock) -> None:
        self._target, self._clock = target, clock
        self._outages = Outages()
        self._admin = target.admin(self._outages)
        self._deadline = clock.monotonic() + PATIENCE

    def partitions(self) -> int:
        """Of the topic that takes the rows. InvalidFlow when there is none: how it is spread and kept is its owner's choice."""
        found = self._find(self._target.topic)
        if found is None:
            hint = did_you_mean(self._target.topic, [each for each in self._names() if not each.startswith("__")])
            message = f"the broker has no such topic{hint}; create it, or correct topic="
            raise InvalidFlow(message, topic=self._target.topic, bootstrap=self._target.bootstrap)
        return found

    def ensure_commits(self) -> None:
        """The topic of the commits is there: compacted, with one partition."""
        name = self._target.commits
        found = self._find(name)
        if found is None:
            wanted = NewTopic(name, 1, config={"cleanup.policy": "compact"})
            try:
                self._admin.create_topics([wanted], request_timeout=self._left())[name].result(self._left())
            except KafkaException as error:
                if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                    raise self._cannot_create(error.args[0]) from error
            while found is None:  # it takes a moment until every broker knows
                found = self._find(name)
                self._expect(None)
        if found != 1:
            message = "the topic of commits must have one partition; give another commits_topic="
            raise InvalidFlow(message, commits_topic=name, partitions=found)
        if not self.compacted(name):
            message = "the topic of commits must be compacted, or rows may come twice; set its cleanup.policy=compact"
            raise InvalidFlow(message, commits_topic=name)

    def compacted(self, name: str) -> bool | None:
        """None if these credentials may not ask."""
        resource = ConfigResource(ResourceType.TOPIC, name)
        try:
            answer = self._admin.describe_configs([resource], request_timeout=self._left())[resource]
            return "compact" in str(answer.result(self._left())["cleanup.policy"].value)
        except KafkaException as error:
            if error.args[0].name().endswith("AUTHORIZATION_FAILED"):
                return None
            raise self._target.error(error.args[0], self._outages) from error

    def _cannot_create(self, error: KafkaError) -> FlowstateError:
        if error.name() in ("_TRANSPORT", "_TIMED_OUT", "REQUEST_TIMED_OUT", "_ALL_BROKERS_DOWN", "NOT_CONTROLLER"):
            return self._target.error(error, self._outages)
        name = self._target.commits
        message = (
            f"the topic of commits cannot be created ({error.str()}); create it with: kafka-topics.sh --create --topic {name}"
            " --partitions 1 --config cleanup.policy=compact"
        )
        return InvalidFlow(message, commits_topic=name, bootstrap=self._target.bootstrap)

    def _find(self, name: str) -> int | None:
        """How many partitions the topic has; None if there is none."""
        while True:
            try:
                found = self._admin.list_topics(name, timeout=min(1.0, self._left())).topics[name]
            except KafkaException as error:
                self._expect(error.args[0])
                continue
            if found.error is None and found.partitions and all(each.leader >= 0 for each in found.partitions.values()):
                return len(found.partitions)
            if found.error is not None and found.error.name() == "UNKNOWN_TOPIC_OR_PART" and name not in self._names():
                return None
            self._expect(found.error)

    def _names(self) -> list[str]:
        try:
            return sorted(self._admin.list_topics(timeout=min(2.0, self._left())).topics)
        except KafkaException as error:
            raise self._target.error(error.args[0], self._outages) from error

    def _left(self) -> float:
        return max(0.1, self._deadline - self._clock.monotonic())

    def _expect(self, error: KafkaError | None) -> None:
        """Raise if waiting has no use, or took too long."""
        self._admin.poll(0.05)
        if error is not None:
            meaning = self._target.error(error, self._outages)
            if isinstance(meaning, InvalidFlow) and error.name() not in _GONE:
                raise meaning
        if self._clock.monotonic() >= self._deadline:
            message = "no answer from the kafka broker; check bootstrap=, and that the broker is running"
            last = self._outages.errors[-1] if self._outages.errors else error
            reason = "" if last is None else last.str()
            raise Unavailable(message, topic=self._target.topic, bootstrap=self._target.bootstrap, reason=reason)
