"""What is done beside the pumps: loading, saving, publishing, asking the store."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

from flowstate.errors import Fenced

BEHIND = 10  # nice value: where a core is short, a pump goes first, and a snapshot takes longer instead


def aside_pool(threads: int = 4) -> ThreadPoolExecutor:
    """Threads that stand back for others of the process. (On Linux a nice value belongs to a thread.)"""
    return ThreadPoolExecutor(threads, thread_name_prefix="flowstate-aside", initializer=_stand_back)


def _stand_back() -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BEHIND)


class Aside:
    """Errands of one pump on a pool. What fails is one of its `problems` and is tried again, after 0.2 seconds, then twice as long, up to
    5; `post` brings answers back to the pump."""

    def __init__(self, pool: Executor, post: Callable[[Callable[[], None]], None], problems: dict[str, str]) -> None:
        self.pool, self.post, self.problems = pool, post, problems
        self.stopped = False

    def do(self, what: str, work: Callable[[], Any], then: Callable[[Any], None], attempt: int = 0) -> None:
        """Do `work`, then `then` with its result on the pump. `what` names the problem if there is one; fenced is fenced."""

        def run() -> None:
            try:
                result = work()
            except Fenced:
                return  # a newer epoch: whoever says so is on its way
            except Exception as error:
                self.problems[what] = f"{type(error).__name__}: {error}"
                again = partial(self.do, what, work, then, attempt + 1)
                timer = threading.Timer(min(5.0, 0.2 * 2 ** min(attempt, 10)), self.post, [again])
                timer.daemon = True
                timer.start()
                return
            if attempt:
                self.problems.pop(what, None)
            self.post(partial(then, result))

        if not self.stopped:
            self.pool.submit(run)

    def stop(self) -> None:
        self.stopped = True
