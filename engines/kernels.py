"""Loops over one logits row that lies in the CPU's memory, compiled by numba when first called (half a second each).

torch reads a row of 262,144 bfloat16 logits several times, with a float32 copy, and splits some of these passes over
threads that have to be woken. Here a pass is one loop of one thread, which reads the bits as they lie: 60 µs for Σ exp
and 15 µs for the 16 largest, where torch took 150 and 230.

Rows are arrays of bits: int32 of float32, int16 of bfloat16. A NaN makes a result meaningless, never an
access out of bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import ffi
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["GROUP", "LARGEST", "gather", "project", "sum_exp", "sum_exp_at", "top"]

# When vLLM loads a model it looks into the `__dict__` of whatever stands in any module; llvmlite's library has a C
# function for every name, that one too, and vLLM would fail over it.
ffi.lib._fntab.setdefault("__dict__", {})  # noqa: SLF001  the names it has looked up

GROUP = 256
"""Elements that have one maximum in the search for the largest, and one float32 sum of exponentials."""
LARGEST = 1e38
"""A sum of exponentials from here on has left float32's range."""

_LOG2_E = np.float32(1.4426950408889634)
_ROUND = np.float32(12582912.0)
"""1.5 · 2²³: added to a float32 it leaves the nearest integer in the last bits."""
_LOW, _HIGH = np.float32(-126.0), np.float32(126.5)
"""Powers of two that float32 has."""
_LOOSE = {"contract", "reassoc", "nsz", "nnan"}
"""What vector instructions need: sums in any order, no NaN."""


@intrinsic  # type: ignore[untyped-decorator]
def _value(context: Any, x: Any) -> Any:
    """What the bits of an element mean, as float32."""

    def code(target: Any, builder: Any, signature: Any, given: Any) -> Any:
        if x == types.int32:
            return builder.bitcast(given[0], ir.FloatType())
        wide = builder.zext(given[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(x), code


@intrinsic  # type: ignore[untyped-decorator]
def _bits(context: Any, x: Any) -> Any:
    """The bits of a float32 as int32."""

    def code(target: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.bitcast(given[0], ir.IntType(32))

    return types.int32(types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def _float(context: Any, x: Any) -> Any:
    """The float32 of these bits."""

    def code(target: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.bitcast(given[0], ir.FloatType())

    return types.float32(types.int32), code


@njit(fastmath={"contract", "nsz", "nnan"})  # type: ignore[untyped-decorator]  # no "reassoc": it would undo the rounding
def _exp2(y: Any) -> Any:
    """2^y for y in float32's range, within 3e-7 of it: its integer part goes into the exponent, the rest, in [-½, ½],
    through a polynomial."""
    y = max(_LOW, y)
    y = min(_HIGH, y)
    whole = y + _ROUND
    f = y - (whole - _ROUND)
    p = np.float32(1.3276467e-3)
    p = p * f + np.float32(9.6755419e-3)
    p = p * f + np.float32(5.5507135e-2)
    p = p * f + np.float32(2.4022120e-1)
    p = p * f + np.float32(6.9314694e-1)
    p = p * f + np.float32(1.0)
    return _float(_bits(p) + (_bits(whole) << np.int32(23)))


@njit(fastmath=_LOOSE)  # type: ignore[untyped-decorator]
def sum_exp(row: Any) -> Any:
    """Σ exp(row). Meaningless where it is not below LARGEST."""
    n = row.shape[0]
    total: Any = 0.0
    for g in range(n // GROUP):
        part = np.float32(0)
        for i in range(GROUP):
            part += _exp2(_value(row[g * GROUP + i]) * _LOG2_E)
        total += part
    for i in range(n - n % GROUP, n):
        total += _exp2(_value(row[i]) * _LOG2_E)
    return total


@njit(fastmath=_LOOSE)  # type: ignore[untyped-decorator]
def sum_exp_at(row: Any, places: Any) -> Any:
    """Σ exp(row[places])."""
    total: Any = 0.0
    for place in places:
        total += _exp2(_value(row[place]) * _LOG2_E)
    return total


@njit  # type: ignore[untyped-decorator]
def _maxima(row: Any, groups: int) -> Any:
    """The largest of each whole group. Found among the bits, of which twice as many bfloat16 fit into an instruction:
    those of positive numbers have their order, those of negative ones the opposite one."""
    found = np.empty(groups, np.float32)
    for g in range(groups):
        high = low = row[g * GROUP]
        for i in range(GROUP):
            high = max(high, row[g * GROUP + i])
            low = min(low, row[g * GROUP + i])
        found[g] = _value(high if high >= 0 else low)
    return found


@njit  # type: ignore[untyped-decorator]
def _enter(x: Any, place: int, values: Any, places: Any, count: Any) -> Any:
    """Put x among the `count` largest so far, best first, behind those equal to it; returns how many there are now."""
    k = values.shape[0]
    if count == k and not x > values[k - 1]:
        return count
    at = min(count, k - 1)
    while at > 0 and x > values[at - 1]:
        values[at], places[at] = values[at - 1], places[at - 1]
        at -= 1
    values[at], places[at] = x, place
    return min(k, count + 1)


@njit  # type: ignore[untyped-decorator]
def top(row: Any, k: int) -> Any:
    """Positions of the k largest of `row`, best first, of equal ones the first, and their values; 1 ≤ k ≤ n.

    Of the k groups with the largest maxima each has an element at least as large as the smallest of these maxima. So
    only groups that reach it have one of the k largest, and what stands behind the last whole group may."""
    n = row.shape[0]
    groups = n // GROUP
    maxima = _maxima(row, groups)
    places, values = np.empty(k, np.int64), np.empty(k, np.float32)
    least = np.float32(-np.inf)
    if k <= groups:
        count = 0
        for g in range(groups):
            count = _enter(maxima[g], g, values, places, count)
        least = values[k - 1]
    count = 0
    for g in range(groups + 1):
        if g < groups and maxima[g] < least:
            continue
        for i in range(g * GROUP, min(n, g * GROUP + GROUP)):
            count = _enter(_value(row[i]), i, values, places, count)
    return places, values


@njit  # type: ignore[untyped-decorator]
def gather(row: Any, ids: Any, symbols: Any) -> Any:
    """The logit of each symbol u, (n,): log Σ exp of row[ids[u]], where ids has shape (|U|, w) and -1 is none; −inf
    without ids, and for u < 0."""
    found = np.empty(symbols.shape[0], np.float32)
    for s in range(symbols.shape[0]):
        u = symbols[s]
        z = np.float32(-np.inf)
        if u >= 0 and ids[u, 0] >= 0:
            z = _value(row[ids[u, 0]])
            for column in range(1, ids.shape[1]):
                i = ids[u, column]
                if i < 0:
                    break
                x = _value(row[i])
                high, low = (x, z) if x > z else (z, x)
                if low > -np.inf:
                    high = np.float32(high + np.log1p(np.exp(np.float64(low) - np.float64(high))))
                z = high
        found[s] = z
    return found


@njit(fastmath=_LOOSE)  # type: ignore[untyped-decorator]
def project(row: Any, symbol_of: Any, log_mass: float, size: int) -> Any:
    """exp(row − log_mass) summed by symbol, (size,); ids of symbol `size` count nowhere."""
    found = np.zeros(size + 1, np.float32)
    shift = np.float32(log_mass)
    part = np.empty(GROUP, np.float32)
    n = symbol_of.shape[0]
    for start in range(0, n, GROUP):
        here = min(GROUP, n - start)
        for i in range(here):
            part[i] = _exp2((_value(row[start + i]) - shift) * _LOG2_E)
        for i in range(here):
            found[symbol_of[start + i]] += part[i]
    return found[:size]
