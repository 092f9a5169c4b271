"""A real Apache Kafka: one KRaft node on free ports, its data in a folder, so that it can be killed and come back."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

from flowstate.clock import Clock
from flowstate.errors import InternalError, Unavailable
from flowstate.testing.servers import cache_folder, fetching
from flowstate.testing.servers.server import Server
from flowstate.testing.tormentor.cluster import free_port
from flowstate.testing.tormentor.processes import ProcessTree

POM = Path(__file__).resolve().with_name("kafka_pom.xml")
VERSION = "4.1.0"
_CLUSTER = "flowstateTestClusterAA"
_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


def missing() -> str | None:
    """Why no broker can run here, or None."""
    complete = (cache_folder() / "kafka" / VERSION / "complete").exists()
    lacking = [each for each in ("java", *(() if complete else ("mvn",))) if shutil.which(each) is None]
    if not lacking:
        return None
    return f"{' and '.join(lacking)} not found: install Java 17 and Maven (Debian: apt-get install openjdk-17-jre-headless maven)"


def jars() -> Path:
    """The broker's class path; fetched when it is not there. `Unavailable` if that cannot be done."""
    folder = cache_folder() / "kafka" / VERSION
    if reason := missing():
        raise Unavailable(reason)
    with fetching(folder):
        if not (folder / "complete").exists():
            command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
            fetched = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if fetched.returncode:
                raise Unavailable(f"maven could not fetch the broker: {fetched.stdout[-2000:]}{fetched.stderr[-2000:]}")
            (folder / "complete").touch()
    return folder


class KafkaBroker(Server):
    """One broker at `bootstrap`. `sasl` adds a listener that wants a user and a password (`SASL_PLAINTEXT`, PLAIN), at `sasl_bootstrap`.
    `host` is the address that it listens at, `within` what precedes its command (`NetworkHost.command`)."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        *,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
        clock: Clock | None = None,
    ) -> None:
        super().__init__(folder / "broker.log", clock)
        self.folder, self._within = folder, list(within)
        self.port, self._controller, self._sasl = free_port(), free_port(), free_port()
        self.bootstrap = f"{host}:{self.port}"
        self.sasl_bootstrap = f"{host}:{self._sasl}"
        self.admin: AdminClient
        self._properties = folder / "server.properties"
        listeners = f"PLAINTEXT://{host}:{self.port},SASL_PLAINTEXT://{host}:{self._sasl}"
        lines = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{host}:{self._controller}",
            "listeners": f"{listeners},CONTROLLER://{host}:{self._controller}",
            "advertised.listeners": listeners,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_plaintext.plain.sasl.jaas.config": f'{_LOGIN} user_anna="secret";',
            "log.dirs": str(folder / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            **(settings or {}),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))

    def format(self) -> None:
        command = ["kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(self._properties)]
        done = subprocess.run([*self._java("256m"), *command], capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise InternalError(f"the broker's folder could not be prepared: {done.stdout}{done.stderr}")

    def start(self, *, wait: bool = True) -> None:
        """Start, also after `kill`, on the same data; returns when it answers (with `wait`, which needs to reach it from here)."""
        self._process = ProcessTree([*self._java("512m"), "kafka.Kafka", str(self._properties)], self.log)
        if wait:
            self.wait_until_up()

    def wait_until_up(self) -> None:
        """Also a broker that was killed: it checks its logs first, which takes long on a machine that is busy."""
        # Kept: results of an admin client that is collected are lost.
        self.admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 200})
        self._wait("the broker", lambda: self.admin.list_topics(timeout=5), 120, pause=0.1)

    def _java(self, memory: str) -> list[str]:
        java = ["java", f"-Xmx{memory}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{jars()}/*"]
        return [*self._within, *java]

    def create_topic(self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        self.admin.create_topics([NewTopic(name, partitions, 1, config=dict(config or {}))])[name].result(30)
        self._wait_for(name, partitions)

    def delete_topic(self, name: str) -> None:
        self.admin.delete_topics([name])[name].result(30)
        deadline = self._clock.monotonic() + 30
        while name in self.admin.list_topics(timeout=10).topics:
            if self._clock.monotonic() > deadline:
                raise Unavailable("a topic that was deleted is still there", topic=name)
            threading.Event().wait(0.05)

    def add_partitions(self, name: str, total: int) -> None:
        self.admin.create_partitions([NewPartitions(name, total)])[name].result(30)
        self._wait_for(name, total)

    def _wait_for(self, name: str, partitions: int) -> None:
        deadline = self._clock.monotonic() + 30
        while True:
            topic = self.admin.list_topics(name, timeout=10).topics[name]
            led = [each for each in topic.partitions.values() if each.leader >= 0]
            if topic.error is None and len(led) == partitions:
                return
            if self._clock.monotonic() > deadline:
                raise Unavailable("a topic does not become ready", topic=name)
            threading.Event().wait(0.05)

    def produce(
        self,
        topic: str,
        values: Iterable[bytes | None],
        partition: int = 0,
        *,
        timestamp: int = 0,
        key: bytes | None = None,
        transaction: str | None = None,
        commit: bool = True,
    ) -> None:
        """Append to one partition and wait until it is there; `timestamp` in ms; in a transaction that is committed or aborted."""
        config = {"bootstrap.servers": self.bootstrap, "linger.ms": 5, "log_level": 0}
        producer = Producer({**config, **({"transactional.id": transaction} if transaction else {})})
        failed: list[object] = []
        if transaction:
            producer.init_transactions(30)
            producer.begin_transaction()
        extra: dict[str, Any] = {"timestamp": timestamp} if timestamp else {}
        for value in values:
            while True:
                try:
                    producer.produce(
                        topic,
                        value,
                        key,
                        partition,
                        on_delivery=lambda error, _: failed.append(error) if error else None,
                        **extra,
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
        if producer.flush(30) or failed:
            raise Unavailable("the broker did not take everything", topic=topic, failed=repr(failed[:3]))
        if transaction and commit:
            producer.commit_transaction(30)
        elif transaction:
            producer.abort_transaction(30)

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """As retention does, but now."""
        place = TopicPartition(topic, partition, before)
        for future in self.admin.delete_records([place]).values():
            future.result(30)
