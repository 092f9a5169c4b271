# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Reads messages where the Kafka client left them, by their addresses (see `kafka_library` for what a message is made of).

Nothing here checks an address; who calls owns them. A message may be read until it was given back, and no longer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from flowstate.plan.kernel import compiling, kernel
from flowstate.plan.memory import load, load_half, store_byte

#: What is kept of a message, one row of int64 each.
ERROR, PARTITION, OFFSET, PAYLOAD, LENGTH, KIND, TIME, FIELDS = 0, 1, 2, 3, 4, 5, 6, 7


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.IntType(8).as_pointer())


@intrinsic
def call_with_message(typingctx: Any, function: Any, message: Any) -> Any:
    """``void function(message)``, a C function by its address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [_pointer(builder, arguments[1])])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


@intrinsic
def call_for_time(typingctx: Any, function: Any, message: Any, place: Any) -> Any:
    """``int64_t function(message, int32_t *place)``."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(8).as_pointer()] * 2)
        pointers = [_pointer(builder, each) for each in arguments[1:]]
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), pointers)

    return types.int64(types.uint64, types.uint64, types.uint64), codegen


@intrinsic
def copy(typingctx: Any, target: Any, source: Any, length: Any) -> Any:
    """`length` bytes to another place."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = ir.Constant(ir.IntType(64), 1)
        cgutils.raw_memcpy(builder, _pointer(builder, arguments[0]), _pointer(builder, arguments[1]), arguments[2], one)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.int64), codegen


@kernel
def look(messages, layout, timestamp, place, found):
    """Fill ``found[FIELDS, n]`` from the messages at n addresses. `layout` are the places of the first five fields in a message;
    `timestamp` is the address of the function that tells the time, `place` of an int32 that it may write to."""
    for row in range(len(messages)):
        message = messages[row]
        found[ERROR, row] = load_half(message + layout[ERROR])
        found[PARTITION, row] = load_half(message + layout[PARTITION])
        found[OFFSET, row] = load(message + layout[OFFSET])
        found[PAYLOAD, row] = load(message + layout[PAYLOAD])
        found[LENGTH, row] = load(message + layout[LENGTH])
        found[TIME, row] = call_for_time(timestamp, message, place)
        found[KIND, row] = load_half(place)


@kernel
def gather(payloads, starts, ends, target):
    """Copy the payloads (0 for none) to their places behind address `target`, and a newline behind each."""
    for row in range(len(payloads)):
        if payloads[row]:
            copy(target + starts[row], payloads[row], ends[row] - starts[row])
            store_byte(target + ends[row], 10)


@kernel
def give_back(messages, destroy):
    """The addresses are of nothing afterwards."""
    for row in range(len(messages)):
        call_with_message(destroy, messages[row])
        messages[row] = 0


def warm_up() -> None:
    """Compile the kernels, or load them from disk, so that no message waits for them."""
    words, numbers, none = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.uint64(0)
    with compiling():
        look(words, np.zeros(LENGTH + 1, np.uint64), none, none, np.zeros((FIELDS, 0), np.int64))
        gather(words, numbers, numbers, none)
        give_back(words, none)
