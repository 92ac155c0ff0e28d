"""Aggregates of row programs over the rows of one range (see the .pxd)."""

from libc.math cimport isinf
from libc.stdint cimport INT64_MAX, INT64_MIN

from shardb._core.arith cimport numeric_accumulate, number_as_double
from shardb._core.buffer cimport buf_put, core_fail
from shardb._core.datum cimport (
    T_FLOAT4, T_FLOAT8, T_INT2, T_INT4, T_INT8, T_JSON, T_NUMERIC, T_UUID, datum_cmp, datum_init,
    type_is_variable,
)
from shardb._core.expr cimport eval_expr

from shardb._core.coreerror import CoreError

cdef dict FUNCTIONS = {
    "count_star": AGG_COUNT_STAR, "count": AGG_COUNT, "sum": AGG_SUM, "min": AGG_MIN,
    "max": AGG_MAX,
}


cdef int aggregate_function(str name, int result, int argument) except -1:
    if name not in FUNCTIONS:
        raise CoreError("0A000", f"aggregate {name} is not supported in a row program")
    if name == "sum" and (
        argument not in (T_INT2, T_INT4, T_INT8, T_FLOAT4, T_FLOAT8, T_NUMERIC)
        or result not in (T_INT8, T_FLOAT4, T_FLOAT8, T_NUMERIC)
    ):
        raise CoreError("0A000", "sum of this type is not supported in a row program")
    if name in ("min", "max") and (argument == T_JSON or argument != result):
        raise CoreError("0A000", f"{name} of this type is not supported in a row program")
    return FUNCTIONS[name]


cdef void aggregate_reset(Accumulator* a) noexcept nogil:
    a.count = 0
    a.n = 0
    a.scale = 0
    a.f = 0.0
    a.text.len = 0


cdef int aggregate_add(Accumulator* a, const Frame* f) noexcept nogil:
    cdef Datum d
    cdef double before
    cdef double value
    cdef int order
    if a.function == AGG_COUNT_STAR:
        a.count += 1
        return 0
    if eval_expr(a.argument, f, &d) != 0:
        return -1
    if d.null:
        return 0
    a.count += 1
    if a.function == AGG_COUNT:
        return 0
    if a.function == AGG_SUM:
        if a.type == T_FLOAT8 or a.type == T_FLOAT4:
            before = a.f
            value = number_as_double(&d)
            a.f += value
            if a.type == T_FLOAT4:
                a.f = <double><float>a.f
            if isinf(a.f) and not isinf(before) and not isinf(value):
                return core_fail(b"22003", b"value out of range: overflow")
            return 0
        return numeric_accumulate(&a.n, &a.scale, &d)
    if a.count > 1:
        order = datum_cmp(&d, &a.best)
        if (order >= 0) if a.function == AGG_MIN else (order <= 0):
            return 0
    a.best = d
    if type_is_variable(d.type) or d.type == T_UUID:
        # The row may be gone before the result is read.
        a.text.len = 0
        buf_put(&a.text, d.p, 16 if d.type == T_UUID else d.len)
        if a.text.failed:
            return core_fail(b"53200", b"out of memory")
        a.best.p = a.text.data
    return 0


cdef int aggregate_result(const Accumulator* a, Datum* out) noexcept nogil:
    datum_init(out, a.type)
    if a.function == AGG_COUNT or a.function == AGG_COUNT_STAR:
        out.i = a.count
        return 0
    if a.count == 0:
        out.null = 1
        return 0
    if a.function != AGG_SUM:
        out[0] = a.best
        return 0
    if a.type == T_FLOAT8 or a.type == T_FLOAT4:
        out.f = a.f
    elif a.type == T_NUMERIC:
        out.n = a.n
        out.scale = <short>a.scale
    else:
        if a.n > <i128>INT64_MAX or a.n < <i128>INT64_MIN:
            return core_fail(b"22003", b"bigint out of range")
        out.i = <int64_t>a.n
    return 0
