"""What a simulation says when something is wrong."""


class Fault(AssertionError):
    """An invariant of the protocol does not hold."""
