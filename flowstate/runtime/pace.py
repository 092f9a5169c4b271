"""How many rows a partition applies at once, and how long it waits for some when there are none."""

from __future__ import annotations

BLOCK = 0.001  # seconds between two moments at which a reader may take a view
FEW_ROWS = 4  # of the first block after a freeze: every chunk that it touches is copied first; the next ones take up to twice as many
SMALL = 256  # blocks after a freeze that may be small: what takes as long even then is not copying
LEAST_ROWS = 2048  # of a block: below, what a block costs by itself would count
SHORTEST, LONGEST = 0.005, 0.04  # seconds between two looks at a log
AT_ONCE = 2  # as many rows as the largest block has are read, decoded and routed together
PART = 0.01  # of a silence, that a row which ends it may wait


def pause(silence: float) -> float:
    """Seconds until the next look for rows, when none came for `silence` seconds: rows that follow one another are seen at once, and those
    after a longer silence a hundredth of it later, so that who has nothing to read costs next to nothing."""
    return min(LONGEST, max(SHORTEST, PART * silence))


class Looks:
    """When a pump looks for rows again. What a few rows cost is hardly less than what many do, and rows that come all the time are always
    few to who looks all the time; so who found few rests as long as reading, sending and applying them took the thread: at most half of
    a core goes to rows that trickle, the other half to readers, and a row waits for three such rounds at most."""

    def __init__(self) -> None:
        self._rows, self._begun, self._next = 0, 0.0, 0.0
        self._fresh = False  # a look whose cost was not asked for yet

    def rest(self, now: float, spent: float) -> float:
        """Seconds until the next look is due, none if it is. `spent`: processor seconds of the thread so far."""
        if self._fresh:
            self._fresh = False
            self._next = now + min(spent - self._begun, SHORTEST) if 0 < self._rows < LEAST_ROWS else now
        return max(0.0, self._next - now)

    def looked(self, rows: int, begun: float) -> None:
        """`rows` were found by a look that began at `begun`, in processor seconds of the thread."""
        self._rows, self._begun, self._fresh = rows, begun, True


class Pace:
    """Blocks of as many rows as take about `BLOCK` seconds to apply, to as many tables as there are; small ones after a freeze, which grow
    as fast as the copying that they cause stays within that time, however many chunks there are and whatever a copy costs."""

    def __init__(self, most: int, tables: int) -> None:
        self.most, self.tables = most, max(1, tables)
        self._row_seconds, self._block, self._few = 1e-7, min(most, LEAST_ROWS), most
        self._weight = 1.0  # of the next measurement: what rows cost is not known before the first
        self._small = 0  # so many of the next blocks may still be small

    @property
    def rows(self) -> int:
        """Of the next block that is applied."""
        return min(self._block, self._few)

    @property
    def stretch(self) -> int:
        """Rows to read at once."""
        return AT_ONCE * self.most

    def sent(self) -> None:
        """A block of `rows` is on its way."""
        self._few = min(2 * self.rows, self.most)

    def begin_small(self) -> None:
        self._few, self._small = FEW_ROWS, SMALL

    def applied(self, rows: int, seconds: float) -> None:
        if self._small:
            self._small = self._small - 1 if self._few < self._block else 0
            copying = seconds - rows * self._row_seconds
            if copying > BLOCK / 2:  # the next block would have twice as many rows
                self._few = max(1, int(self._few / 2 * BLOCK / copying))
        elif rows >= LEAST_ROWS // 2:
            self._row_seconds += self._weight * (seconds / rows - self._row_seconds)
            self._weight = 0.1
            self._block = int(min(self.most, max(LEAST_ROWS, BLOCK / (self._row_seconds * self.tables))))
