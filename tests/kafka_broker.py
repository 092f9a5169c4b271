"""A real Apache Kafka for tests: one KRaft node on free loopback ports, its data in a folder, so that it can be killed and come back.

Maven fetches it once into `.cache/kafka`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

ROOT = Path(__file__).resolve().parent.parent
POM = Path(__file__).resolve().with_name("kafka_pom.xml")
VERSION = "4.1.0"
JARS = ROOT / ".cache" / "kafka" / VERSION
CLUSTER = "flowstateTestClusterAA"


def jars() -> Path:
    """The broker's class path. Skips the test (fails when CI=true) if the toolchain is missing."""
    missing = [
        each for each in ("java", *(() if (JARS / "complete").exists() else ("mvn",))) if shutil.which(each) is None
    ]
    if missing:
        told = f"{' and '.join(missing)} not found: install Java 17 and Maven (Debian: apt-get install openjdk-17-jre-headless maven)"
        if os.environ.get("CI") == "true":
            pytest.fail(told)
        pytest.skip(told)
    if not (JARS / "complete").exists():
        JARS.mkdir(parents=True, exist_ok=True)
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={JARS}"]
        fetched = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if fetched.returncode:
            pytest.fail(f"maven could not fetch the broker: {fetched.stdout[-2000:]}{fetched.stderr[-2000:]}")
        (JARS / "complete").touch()
    return JARS


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    # A test run that is itself killed by SIGKILL leaves no broker behind (Linux).
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class KafkaBroker:
    """`sasl` adds a listener that wants user and password (`SASL_PLAINTEXT`, PLAIN), at `sasl_bootstrap`."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.port, self._controller, self._sasl = free_port(), free_port(), free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.sasl_bootstrap = f"127.0.0.1:{self._sasl}"
        self.admin: AdminClient
        self._process: subprocess.Popen[bytes] | None = None
        self._properties = folder / "server.properties"
        listeners = f"PLAINTEXT://127.0.0.1:{self.port},SASL_PLAINTEXT://127.0.0.1:{self._sasl}"
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        lines = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "listeners": f"{listeners},CONTROLLER://127.0.0.1:{self._controller}",
            "advertised.listeners": listeners,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_plaintext.plain.sasl.jaas.config": f'{login} user_anna="secret";',
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

    @property
    def log(self) -> Path:
        """What the broker wrote about itself."""
        return self.folder / "broker.log"

    def format(self) -> None:
        command = ["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c", str(self._properties)]
        done = subprocess.run([*self._java("256m"), *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Start, also after `kill`, on the same data; returns when it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java("512m"), "kafka.Kafka", str(self._properties)],
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
            )
        deadline = time.monotonic() + 60
        while True:
            assert self._process.poll() is None, f"the broker ended: {self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"the broker does not answer: {self.log.read_text()[-3000:]}"
            try:
                # Kept: results of an admin client that is collected are lost.
                self.admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
                self.admin.list_topics(timeout=1)
                return
            except Exception:
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nothing is told to anybody."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def _java(self, memory: str) -> list[str]:
        return ["java", f"-Xmx{memory}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{jars()}/*"]

    def create_topic(self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        self.admin.create_topics([NewTopic(name, partitions, 1, config=dict(config or {}))])[name].result(30)
        self._wait_for(name, partitions)

    def add_partitions(self, name: str, total: int) -> None:
        self.admin.create_partitions([NewPartitions(name, total)])[name].result(30)
        self._wait_for(name, total)

    def _wait_for(self, name: str, partitions: int) -> None:
        deadline = time.monotonic() + 30
        while True:
            topic = self.admin.list_topics(name, timeout=10).topics[name]
            led = [each for each in topic.partitions.values() if each.leader >= 0]
            if topic.error is None and len(led) == partitions:
                return
            assert time.monotonic() < deadline, f"topic {name} is not ready"
            time.sleep(0.05)

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
        assert producer.flush(30) == 0
        assert not failed, failed
        if transaction and commit:
            producer.commit_transaction(30)
        elif transaction:
            producer.abort_transaction(30)

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """As retention does, but now."""
        place = TopicPartition(topic, partition, before)
        for future in self.admin.delete_records([place]).values():
            future.result(30)
