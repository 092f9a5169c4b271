"""The cluster that `fs.start` makes by itself keeps as many workers as it began with."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import dask
import pytest
import waiting
from distributed import Client

from flowstate.api.own_cluster import DASK_SETTINGS, WORKER_ENVIRONMENT, own_cluster

#: Dask's default for how long after a loss it looks whether the worker is there again.
LOST = 15.0


def addresses(client: Client) -> dict[object, str]:
    """Of the workers that are there, by name."""
    return {each["name"]: address for address, each in client.scheduler_info(n_workers=-1)["workers"].items()}


def kill(client: Client, name: object) -> float:
    """Kill a worker; when it was."""
    address = addresses(client)[name]
    os.kill(client.run(os.getpid, workers=[address])[address], signal.SIGKILL)
    lost = time.monotonic()
    waiting.until(lambda: address not in addresses(client).values())
    return lost


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    for name in (
        WORKER_ENVIRONMENT
    ):  # Dask leaves what it gives its workers in the process that starts them, and prefers what is there
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:
        yield own_cluster(stack)


@pytest.mark.slow
def test_a_worker_that_is_lost_again_when_dask_looks_for_it_comes_back(client: Client) -> None:
    assert addresses(client).keys() == {0, 1}
    lost = kill(client, 0)
    waiting.until(lambda: addresses(client).keys() == {0, 1}, LOST - 3)
    time.sleep(max(0.0, lost + LOST - 0.3 - time.monotonic()))  # a nanny needs longer than that to start it again
    kill(client, 0)
    time.sleep(max(0.0, lost + LOST + 0.5 - time.monotonic()))
    waiting.until(lambda: addresses(client).keys() == {0, 1})


def test_its_workers_do_not_give_back_every_piece_of_memory_at_once(client: Client) -> None:
    for name, value in WORKER_ENVIRONMENT.items():
        assert set(client.run(os.environ.get, name).values()) == {str(value)}


def test_dask_reads_the_settings_from_the_environment_that_flowstate_run_gives_it() -> None:
    given = {f"DASK_{name.upper().replace('.', '__')}": str(value) for name, value in DASK_SETTINGS.items()}
    found = dask.config.collect_env(given)
    with dask.config.set(DASK_SETTINGS):
        for name in DASK_SETTINGS:
            assert dask.config.get(name, config=found) == dask.config.get(name)
