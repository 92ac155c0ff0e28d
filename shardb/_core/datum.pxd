# One SQL value in C, the type codes, and their text and binary forms.

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    typedef __int128 shardb_i128;
    """
    ctypedef long long i128 "shardb_i128"

cdef enum:
    T_UNKNOWN = 0
    T_BOOL = 1
    T_INT2 = 2
    T_INT4 = 3
    T_INT8 = 4
    T_FLOAT4 = 5
    T_FLOAT8 = 6
    T_NUMERIC = 7
    T_TEXT = 8
    T_VARCHAR = 9
    T_BPCHAR = 10
    T_BYTEA = 11
    T_DATE = 12
    T_TIME = 13
    T_TIMESTAMP = 14
    T_TIMESTAMPTZ = 15
    T_INTERVAL = 16
    T_UUID = 17
    T_JSON = 18
    T_JSONB = 19

# A value. Which member holds it:
#   i   BOOL (0/1), INT2/4/8, DATE (days since 1970-01-01), TIME (us since midnight),
#       TIMESTAMP[TZ] (us since 1970-01-01 UTC), INTERVAL (us part)
#   f   FLOAT4, FLOAT8
#   n   NUMERIC, unscaled, with `scale` digits after the point
#   p   TEXT, VARCHAR, BPCHAR, BYTEA, JSON, JSONB, UNKNOWN (`len` bytes, not owned); UUID (16 bytes)
#   months, days   INTERVAL
ctypedef struct Datum:
    uint8_t type
    uint8_t null
    int16_t scale
    int32_t len
    int32_t months
    int32_t days
    int64_t i
    double f
    i128 n
    const char* p
