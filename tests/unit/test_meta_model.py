"""The embedded metadata store against a plain dictionary, over random histories with reopenings."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from shardb.meta.embedded import EmbeddedStore
from shardb.meta.store import Compare, Delete, Operation, Put

KEYS = ("a", "a/1", "a/2", "b", "é/1")
PREFIXES = ("", "a", "a/", "é", "z")

operations = st.dictionaries(st.sampled_from(KEYS), st.none() | st.binary(max_size=3), min_size=1)
steps = st.lists(
    st.tuples(
        st.sampled_from(["txn", "reopen", "compact"]),
        operations,
        st.sampled_from(KEYS),
        st.booleans(),
    ),
    max_size=12,
)


def as_operations(changes: dict[str, bytes | None]) -> list[Operation]:
    return [Delete(key) if value is None else Put(key, value) for key, value in changes.items()]


@given(steps=steps, from_revision=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_the_store_behaves_like_a_dictionary_with_a_history(
    steps: list[tuple[str, dict[str, bytes | None], str, bool]], from_revision: int
) -> None:
    async def scenario(path: Path) -> None:
        store = EmbeddedStore(path)
        model: dict[str, bytes] = {}
        changed_at: dict[str, int] = {}
        history: list[dict[str, bytes | None]] = []
        compacted = 0
        for kind, changes, compared, right in steps:
            if kind == "reopen":
                await store.close()
                store = EmbeddedStore(path)
            elif kind == "compact":
                store.compact(keep_revisions=2)
                compacted = max(compacted, len(history) - 2)
            else:
                expected = changed_at.get(compared, 0) if compared in model else 0
                condition = Compare(compared, expected if right else expected + 1)
                result = await store.txn((condition,), as_operations(changes))
                assert result.succeeded == right
                effective = {
                    key: value
                    for key, value in changes.items()
                    if right and (value is not None or key in model)
                }
                if effective:
                    history.append(effective)
                for key, value in effective.items():
                    changed_at[key] = len(history)
                    if value is None:
                        del model[key]
                    else:
                        model[key] = value
                assert result.revision == len(history)
            for prefix in PREFIXES:
                snapshot = await store.range(prefix)
                assert snapshot.revision == len(history)
                found = [(item.key, item.value, item.mod_revision) for item in snapshot.items]
                assert found == [
                    (key, model[key], changed_at[key])
                    for key in sorted(model)
                    if key.startswith(prefix)
                ]
        if compacted < from_revision <= len(history):
            watch = store.watch("", from_revision)
            for revision in range(from_revision, len(history) + 1):
                seen = await asyncio.wait_for(anext(watch), 5)
                assert seen.revision == revision
                found_changes = {change.key: change.value for change in seen.changes}
                assert found_changes == history[revision - 1]
        await store.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(scenario(Path(directory, "meta.db")))
