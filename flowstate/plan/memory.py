# mypy: disable-error-code="untyped-decorator"
"""Memory as kernels see it: addresses, unaligned words, prefetching. None of it checks anything; callers own the bounds."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def load(typingctx: Any, address: Any) -> Any:
    """The uint64 at `address`, which need not be aligned. Reads eight bytes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))
        value.align = 1
        return value

    return types.uint64(types.uint64), codegen


@intrinsic
def load_byte(typingctx: Any, address: Any) -> Any:
    """The uint8 at `address`, as uint64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()))
        return builder.zext(value, ir.IntType(64))

    return types.uint64(types.uint64), codegen


@intrinsic
def load_half(typingctx: Any, address: Any) -> Any:
    """The int32 at `address` (aligned), as int64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(builder.inttoptr(arguments[0], ir.IntType(32).as_pointer()))
        value.align = 1
        return builder.sext(value, ir.IntType(64))

    return types.int64(types.uint64), codegen


@intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Write the uint64 `value` at `address`, which need not be aligned."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        written = builder.store(arguments[1], builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))
        written.align = 1
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


@intrinsic
def store_byte(typingctx: Any, address: Any, value: Any) -> Any:
    """Write the low byte of `value` at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = builder.trunc(arguments[1], ir.IntType(8))
        builder.store(byte, builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


@intrinsic
def as_float(typingctx: Any, bits: Any) -> Any:
    """The float64 with these bits."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.uint64), codegen


@intrinsic
def as_bits(typingctx: Any, value: Any) -> Any:
    """The bits of a float64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.uint64(types.float64), codegen


def product_words(builder: Any, factors: Any) -> tuple[Any, Any]:
    """The high and the low word of the product of two words, in code that is being generated."""
    word, double = ir.IntType(64), ir.IntType(128)
    product = builder.mul(builder.zext(factors[0], double), builder.zext(factors[1], double))
    return builder.trunc(builder.lshr(product, ir.Constant(double, 64)), word), builder.trunc(product, word)


@intrinsic
def multiply_fold(typingctx: Any, a: Any, b: Any) -> Any:
    """The high word of the 128-bit product of two uint64, xor the low one."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.xor(*product_words(builder, arguments))

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask the cache for the line at `address`; harmless for any address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        )
        address = builder.inttoptr(arguments[0], pointer)
        builder.call(function, [address, ir.Constant(word, 0), ir.Constant(word, 3), ir.Constant(word, 1)])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen
