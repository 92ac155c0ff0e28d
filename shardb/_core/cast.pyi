"""Casts between SQL types with PostgreSQL's semantics."""

def cast_text(
    source: int,
    source_typmod: int,
    text: bytes,
    target: int,
    target_typmod: int,
    explicit_cast: bool = True,
) -> bytes | None: ...
