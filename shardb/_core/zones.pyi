from typing_extensions import Buffer

STRING_MAX_BYTES: int

def zone_map(
    type_code: int,
    typmod: int,
    rows: int,
    validity: Buffer | None,
    offsets: Buffer | None,
    values: Buffer | None,
) -> tuple[bytes, bytes]:
    """`(low, high)`: key encodings (ascending, not nullable) that bound all values, inclusive.

    Both are empty if there is no value or the type has no order; `high` alone if no string bounds
    them. Strings are cut to STRING_MAX_BYTES. The buffers are an Arrow array's, not sliced;
    ValueError if they are too short for `rows`.
    """

def scan_rows(
    rows: int,
    offsets: Buffer,
    keys: Buffer | None,
    timestamps: Buffer,
    deleted: Buffer,
    last_key: bytes | None,
    last_ts: int,
) -> tuple[int, int, int, bool, int]:
    """`(tombstones, min_ts, max_ts, versions, disorder)` of the system columns of a row group.

    `last_key`, `last_ts` are of the row before, None at the start. `versions`: some key has more
    than one. `disorder` is the first row that is not after the one before it (by key, then newest
    first), -1 if all are.
    """
