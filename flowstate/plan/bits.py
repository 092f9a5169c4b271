# mypy: disable-error-code="untyped-decorator"
"""What a processor can do with the bits of a word and numba has no name for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from flowstate.plan.memory import product_words


@intrinsic
def trailing_zeros(typingctx: Any, word: Any) -> Any:
    """How many of the lowest bits of a uint64 are 0; 64 of 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), codegen


@intrinsic
def leading_zeros(typingctx: Any, word: Any) -> Any:
    """How many of the highest bits of a uint64 are 0; 64 of 0."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), codegen


@intrinsic
def multiply_high(typingctx: Any, a: Any, b: Any) -> Any:
    """The high word of the 128-bit product of two uint64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return product_words(builder, arguments)[0]

    return types.uint64(types.uint64, types.uint64), codegen
