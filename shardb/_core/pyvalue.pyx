"""Python values of SQL values, for tests and slow paths.

bool; int (int2/4/8); float; Decimal; str (text types, json, jsonb, unknown); bytes; date, time,
datetime (aware for timestamptz); (months, days, microseconds) for interval; UUID. Values outside
what Python's types hold (infinity, BC, years past 9999) are given and taken as their text.
"""

from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t

from shardb._core.buffer cimport (
    Buf, arena_alloc, buf_bytes, buf_free, buf_init, raise_core,
)
from shardb._core.datum cimport (
    T_BOOL, T_BYTEA, T_DATE, T_FLOAT4, T_FLOAT8, T_INT2, T_INT8, T_INTERVAL, T_NUMERIC, T_TIME,
    T_TIMESTAMP, T_TIMESTAMPTZ, T_UUID, datum_apply_typmod, datum_from_text, datum_init,
    datum_to_text, type_is_variable,
)
from libc.string cimport memcpy

cdef object EPOCH = datetime(1970, 1, 1)
cdef object EPOCH_UTC = datetime(1970, 1, 1, tzinfo=timezone.utc)
cdef object EPOCH_DATE = date(1970, 1, 1)
cdef object MICROSECOND = timedelta(microseconds=1)
# what Python's date and datetime hold
cdef int64_t DAY_MIN = -719162
cdef int64_t DAY_MAX = 2932896
cdef int64_t US_PER_DAY = 86400000000LL


cdef char* kept(bytes data, Arena* arena) except NULL:
    cdef char* p = arena_alloc(arena, len(data) + 1)
    if p == NULL:
        raise MemoryError
    memcpy(p, PyBytes_AS_STRING(data), len(data))
    return p


cdef int datum_from_object(int type, int typmod, object value, Datum* out, Arena* arena) except -1:
    cdef bytes data
    cdef const char* p
    datum_init(out, type)
    if value is None:
        out.null = 1
        return 0
    if type == T_BOOL:
        out.i = 1 if value else 0
    elif T_INT2 <= type <= T_INT8:
        data = str(int(value)).encode()
        if datum_from_text(type, typmod, data, len(data), out, arena) != 0:
            raise_core()
    elif type == T_FLOAT4:
        out.f = <float><double>value
    elif type == T_FLOAT8:
        out.f = value
    elif type == T_BYTEA or (type_is_variable(type) and isinstance(value, bytes)):
        data = bytes(value)
        out.p = kept(data, arena)
        out.len = <int32_t>len(data)
    elif type == T_UUID:
        data = (value if isinstance(value, UUID) else UUID(value)).bytes
        out.p = kept(data, arena)
        out.len = 16
    elif type == T_INTERVAL and not isinstance(value, str):
        out.months, out.days, out.i = value
    elif type == T_DATE and type_of(value) is date:
        out.i = (value - EPOCH_DATE).days
    elif type == T_TIME and isinstance(value, time):
        out.i = ((value.hour * 60 + value.minute) * 60 + value.second) * 1000000 + value.microsecond
        datum_apply_typmod(out, typmod, False, arena)
    elif type == T_TIMESTAMP and isinstance(value, datetime):
        out.i = (value - EPOCH) // MICROSECOND
        datum_apply_typmod(out, typmod, False, arena)
    elif type == T_TIMESTAMPTZ and isinstance(value, datetime):
        out.i = (value - EPOCH_UTC) // MICROSECOND
        datum_apply_typmod(out, typmod, False, arena)
    else:
        data = (value if isinstance(value, str) else str(value)).encode()
        p = kept(data, arena)
        if datum_from_text(type, typmod, p, len(data), out, arena) != 0:
            raise_core()
    return 0


cdef inline object type_of(object value):
    return value.__class__


cdef object text_of(const Datum* d, int typmod):
    cdef Buf out
    buf_init(&out)
    try:
        if datum_to_text(d, typmod, &out) != 0:
            raise_core()
        return buf_bytes(&out).decode()
    finally:
        buf_free(&out)


cdef object datum_to_object(const Datum* d, int typmod):
    cdef int type = d.type
    cdef int64_t s
    if d.null:
        return None
    if type == T_BOOL:
        return d.i != 0
    if T_INT2 <= type <= T_INT8:
        return d.i
    if type == T_FLOAT4 or type == T_FLOAT8:
        return d.f
    if type == T_NUMERIC:
        return Decimal(text_of(d, typmod))
    if type == T_BYTEA:
        return PyBytes_FromStringAndSize(d.p, d.len)
    if type_is_variable(type):
        return PyBytes_FromStringAndSize(d.p, d.len).decode()
    if type == T_UUID:
        return UUID(bytes=PyBytes_FromStringAndSize(d.p, 16))
    if type == T_INTERVAL:
        return (d.months, d.days, d.i)
    if type == T_DATE and DAY_MIN <= d.i <= DAY_MAX:
        return EPOCH_DATE + timedelta(days=d.i)
    if type == T_TIME and 0 <= d.i < US_PER_DAY:
        s = d.i // 1000000
        return time(s // 3600, s // 60 % 60, s % 60, d.i % 1000000)
    if ((type == T_TIMESTAMP or type == T_TIMESTAMPTZ)
            and DAY_MIN * US_PER_DAY <= d.i < (DAY_MAX + 1) * US_PER_DAY):
        return (EPOCH if type == T_TIMESTAMP else EPOCH_UTC) + timedelta(microseconds=d.i)
    return text_of(d, typmod)
