"""A 16-lane float32 vector for numba kernels: written out, since the auto-vectoriser does not find it.

LLVM splits the 16 lanes over whatever the machine has (one AVX-512 register, two AVX2 or four NEON ones), so the
kernels are portable. Only what they need is here: load, store, broadcast, arithmetic, fused multiply-add, and the
exponential family from polynomials, accurate to about 1e-7.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_jitable, register_model
from numba.np.arrayobj import populate_array

from ssamba.ops.kernels import DIMENSIONS, HEADER, SLOT

LANES = 16
_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_INT, LANES)


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


vector = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _scalar(context: Any, builder: Any, array_type: Any, array_value: Any, index_type: Any, index_value: Any) -> Any:
    array = context.make_array(array_type)(context, builder, array_value)
    parts = cgutils.unpack_tuple(builder, index_value, len(index_type))
    indices = [context.cast(builder, part, kind, types.intp) for part, kind in zip(parts, index_type, strict=True)]
    return cgutils.get_item_pointer(context, builder, array_type, array, indices, wraparound=False)


def _pointer(context: Any, builder: Any, *operands: Any) -> Any:
    return builder.bitcast(_scalar(context, builder, *operands), _VECTOR.as_pointer())


def _word(builder: Any, call: Any, position: Any) -> Any:
    """The address of an int64 of a call's description (`ssamba.ops.kernels`)."""
    return builder.gep(builder.bitcast(call, ir.IntType(64).as_pointer()), [position])


@intrinsic
def claim(typing: Any, call: Any) -> Any:
    """The number of a task of this call that no thread has taken yet; as many as there are tasks, or more: none."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        counter = _word(builder, arguments[0], ir.Constant(ir.IntType(64), 0))
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(call), emit


@intrinsic
def integer(typing: Any, call: Any, position: Any) -> Any:
    """The word of this call's description at ``position``."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_word(builder, arguments[0], context.cast(builder, arguments[1], position, types.int64)))

    return types.int64(call, position), emit


@register_jitable
def flag(call, index):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The flag with this number among a call's arguments."""
    return integer(call, HEADER + SLOT * index) != 0


@intrinsic(prefer_literal=True)
def tensor(typing: Any, call: Any, index: Any, dimensions: Any) -> Any:
    """The float32 tensor with this number among a call's arguments, seen as an array of any strides."""
    kind = types.Array(types.float32, dimensions.literal_value, "A")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = HEADER + SLOT * index.literal_value

        def word(offset: int) -> Any:
            return builder.load(_word(builder, arguments[0], ir.Constant(ir.IntType(64), first + offset)))

        array = context.make_array(kind)(context, builder)
        data = builder.inttoptr(word(0), context.get_data_type(types.float32).as_pointer())
        shape = [word(1 + i) for i in range(kind.ndim)]
        strides = [word(1 + DIMENSIONS + i) for i in range(kind.ndim)]
        itemsize = context.get_constant(types.intp, 4)
        populate_array(array, data=data, shape=shape, strides=strides, itemsize=itemsize, meminfo=None)
        return array._getvalue()

    return kind(call, index, dimensions), emit


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """16 neighbours of ``array`` (last dimension contiguous) from ``index`` on."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, array, arguments[0], index, arguments[1])
        return builder.load(pointer, align=4)

    return vector(array, index), emit


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write 16 neighbours of ``array`` (last dimension contiguous) from ``index`` on."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, array, arguments[0], index, arguments[1])
        builder.store(arguments[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, index, value), emit


def _broadcast(builder: Any, scalar: Any, kind: Any) -> Any:
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_INT, 0))
    zeros = ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """The scalar ``value`` in every lane."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _broadcast(builder, context.cast(builder, arguments[0], value, types.float32), _VECTOR)

    return vector(value), emit


@intrinsic
def spread(typing: Any, array: Any, index: Any) -> Any:
    """The one element of ``array`` at ``index``, not counted from the end when negative, in every lane."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _scalar(context, builder, array, arguments[0], index, arguments[1])
        return _broadcast(builder, builder.load(pointer), _VECTOR)

    return vector(array, index), emit


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of ``array`` at ``index``, which may lie outside; it is soon needed."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _scalar(context, builder, array, arguments[0], index, arguments[1])
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, keep, data = (ir.Constant(_INT, value) for value in (0, 3, 1))
        builder.call(function, [builder.bitcast(pointer, byte), to_read, keep, data])
        return context.get_dummy_value()

    return types.void(array, index), emit


@intrinsic
def total(typing: Any, value: Any) -> Any:
    """The sum of the lanes, pairwise (the order is fixed, so the result is too)."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        current, width = arguments[0], LANES
        while width > 1:
            width //= 2
            kind = ir.VectorType(_INT, width)
            undefined = ir.Constant(current.type, ir.Undefined)
            low = builder.shuffle_vector(current, undefined, ir.Constant(kind, list(range(width))))
            high = builder.shuffle_vector(current, undefined, ir.Constant(kind, list(range(width, 2 * width))))
            current = builder.fadd(low, high)
        return builder.extract_element(current, ir.Constant(_INT, 0))

    return types.float32(value), emit


def _llvm(builder: Any, name: str, arity: int) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * arity)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32")


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(_llvm(builder, "fma", 3), arguments)

    return vector(a, b, c), emit


def _binary(name: str) -> Any:
    @intrinsic
    def operation(typing: Any, a: Any, b: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments)

        return vector(a, b), emit

    return operation


def _give_operator(symbol: Any, operation: Any) -> None:
    @overload(symbol)
    def choose(a, b):  # type: ignore[no-untyped-def]  # numba compares these argument names, so no annotations
        return (lambda a, b: operation(a, b)) if a is vector and b is vector else None


_give_operator(operator.add, _binary("fadd"))
_give_operator(operator.sub, _binary("fsub"))
_give_operator(operator.mul, _binary("fmul"))


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger of a and b in each lane; a NaN in a stays a NaN."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        below = builder.fcmp_ordered("<", arguments[0], arguments[1])
        return builder.select(below, arguments[1], arguments[0])

    return vector(a, b), emit


@intrinsic
def _times_power(typing: Any, value: Any, shifted: Any) -> Any:
    """value * 2 ** n for value in [0.5, 2) and n the integer that was rounded into ``shifted`` = n + _ROUNDER."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = _broadcast(builder, ir.Constant(_INT, 23), _INTS)
        bits, power = (builder.bitcast(argument, _INTS) for argument in arguments)
        return builder.bitcast(builder.add(bits, builder.shl(power, places)), _VECTOR)

    return vector(value, shifted), emit


_ROUNDER = 1.5 * 2.0**23  # a float32 of this size has no fraction: adding it rounds to an integer, in the lowest bits


@register_jitable
def exp2(x):  # type: ignore[no-untyped-def]
    """2 ** x for x <= 126, below -126 as 2 ** -126: a polynomial of degree 5, relative error at most 1.7e-7.

    It is exact at 0, where decays near 1 come from: an error there would grow with the length of the state's memory.
    """
    x = maximum(x, splat(-126.0))
    shifted = x + splat(_ROUNDER)
    fraction = x - (shifted - splat(_ROUNDER))
    y = fma(splat(0.00132647272), fraction, splat(0.00967151281))
    y = fma(y, fraction, splat(0.0555073374))
    y = fma(y, fraction, splat(0.240222421))
    y = fma(y, fraction, splat(0.693146978))
    y = fma(y, fraction, splat(1.0))
    return _times_power(y, shifted)


@register_jitable
def exp_negative(x):  # type: ignore[no-untyped-def]
    """exp(-|x|)."""
    magnitude = maximum(x, splat(0.0) - x)
    return exp2(magnitude * splat(-1.44269504))


@register_jitable
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)) without overflow: max(x, 0) + log1p(w) for w = exp(-|x|) in (0, 1].

    log1p(w) / w is a minimax polynomial of degree 9, relative error below 1.2e-7; a division would take longer.
    """
    w = exp_negative(x)
    y = fma(splat(-0.0032439809), w, splat(0.019851263))
    y = fma(y, w, splat(-0.056959159))
    y = fma(y, w, splat(0.10603617))
    y = fma(y, w, splat(-0.1530557))
    y = fma(y, w, splat(0.19675931))
    y = fma(y, w, splat(-0.24954132))
    y = fma(y, w, splat(0.33329962))
    y = fma(y, w, splat(-0.49999902))
    y = fma(y, w, splat(1.0))
    return fma(y, w, maximum(x, splat(0.0)))


@intrinsic
def _where_positive(typing: Any, x: Any, a: Any, b: Any) -> Any:
    """a where x >= 0, else b."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = _broadcast(builder, ir.Constant(_FLOAT, 0.0), _VECTOR)
        positive = builder.fcmp_ordered(">=", arguments[0], zero)
        return builder.select(positive, arguments[1], arguments[2])

    return vector(x, a, b), emit


@register_jitable
def _reciprocal(d):  # type: ignore[no-untyped-def]
    """1 / d for d in [1, 2]: the best parabola (error 1/99) and two Newton steps, which a division would outlast."""
    r = fma(fma(splat(32.0 / 99.0), d, splat(-144.0 / 99.0)), d, splat(210.0 / 99.0))
    r = fma(r, fma(splat(0.0) - d, r, splat(1.0)), r)
    return fma(r, fma(splat(0.0) - d, r, splat(1.0)), r)


@register_jitable
def logistic(x):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(-x)), without overflow at either end."""
    w = exp_negative(x)
    return _where_positive(x, splat(1.0), w) * _reciprocal(splat(1.0) + w)
