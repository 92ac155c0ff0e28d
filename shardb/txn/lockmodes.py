"""The four modes of row locks and which of them conflict (PostgreSQL 15, section 13.3.2).

    requested           KEY SHARE   SHARE   NO KEY UPDATE   UPDATE
    KEY SHARE                                                 X
    SHARE                                         X           X
    NO KEY UPDATE                     X           X           X
    UPDATE                  X         X           X           X

A stronger mode conflicts with all that a weaker one does, so that who holds one holds the weaker
ones too, and of two the stronger one stands for both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

KEY_SHARE: Final = 1  # foreign keys' checks: the row stays, and its key
SHARE: Final = 2
NO_KEY_UPDATE: Final = 3  # UPDATE of other columns than the key's
UPDATE: Final = 4  # DELETE, INSERT, UPDATE of key columns

CONFLICTS: Final[dict[int, frozenset[int]]] = {
    KEY_SHARE: frozenset({UPDATE}),
    SHARE: frozenset({NO_KEY_UPDATE, UPDATE}),
    NO_KEY_UPDATE: frozenset({SHARE, NO_KEY_UPDATE, UPDATE}),
    UPDATE: frozenset({KEY_SHARE, SHARE, NO_KEY_UPDATE, UPDATE}),
}

BY_NAME: Final = {  # as in SELECT ... FOR
    "key share": KEY_SHARE,
    "share": SHARE,
    "no key update": NO_KEY_UPDATE,
    "update": UPDATE,
}


def update_mode(key_columns: Iterable[int], assigned: Iterable[int]) -> int:
    """What an UPDATE locks its rows with: the columns of keys and those it assigns."""
    return NO_KEY_UPDATE if set(key_columns).isdisjoint(assigned) else UPDATE
