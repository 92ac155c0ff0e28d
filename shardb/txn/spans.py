"""SERIALIZABLE: whether what a transaction has read is still so, when it commits (PROTOCOL 5).

A transaction reads at its snapshot and commits later. It may if nothing it has read was changed in
between: no version in its spans is newer than the snapshot, none is on its way, and it writes into
no span that another one in flight has read. Spans bind SERIALIZABLE writers only. The order of
commit timestamps is then a serial order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from shardb.txn.participant import Participant
    from shardb.txn.state import State

CONFLICT: Final = "could not serialize access due to read/write dependencies among transactions"
RETRY: Final = "The transaction might succeed if retried."


def conflicts(participant: Participant, state: State) -> bool:
    """True if `state`, about to be prepared or committed in one phase, has to be refused."""
    changed_since = participant.host.changed_since
    for span in state.spans:
        if changed_since(span.table_id, span.low, span.high, state.snapshot_ts):
            return True
    return any(
        other is not state and (other.writes_any(state.spans) or state.writes_any(other.spans))
        for other in participant.prepared.values()
    )
