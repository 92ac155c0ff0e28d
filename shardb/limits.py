"""Every bound of the system, its unit in its name; relations between them are asserted below."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- the client's door
CLIENT_MESSAGE_MAX_BYTES: Final = 256 * MIB  # one frontend message; a longer one closes the session
STARTUP_PACKET_MAX_BYTES: Final = 10_000  # as in PostgreSQL (MAX_STARTUP_PACKET_LENGTH)
CONNECTIONS_MAX: Final = 1_000  # per coordinator; the next one gets 53300
STATEMENT_MAX_BYTES: Final = 16 * MIB
STATEMENT_DEPTH_MAX: Final = 200  # nesting of expressions and subqueries; deeper is 54001
PARAMETERS_MAX: Final = 65_535  # the protocol's Int16 count, read as unsigned
PREPARED_STATEMENTS_MAX: Final = 10_000  # per session
PORTALS_MAX: Final = 10_000  # per session
CLIENT_SEND_BUFFER_MAX_BYTES: Final = 4 * MIB  # above it result streams and parsing pause
IDENTIFIER_MAX_BYTES: Final = 63
COLUMNS_MAX: Final = 1_600  # of a table, those it had and lost included
CHECKS_MAX: Final = 256  # CHECK constraints of a table
TABLE_LAYOUTS_MAX: Final = 64  # earlier row layouts of a table: changes of its columns
SCHEMA_VERSION_MAX: Final = 65_535  # of a table: rows carry it in two bytes

# --- COPY and large inserts, per statement
COPY_CHUNK_BYTES: Final = 1 * MIB  # of the client's data, parsed in one go
COPY_INBOX_MAX_BYTES: Final = 4 * MIB  # received and not yet parsed: above it the client waits
BULK_BATCH_BYTES: Final = 2 * MIB  # of keys and rows: a batch ends with the row that reaches it
BULK_SLICE_BYTES: Final = 256 * KIB  # of a batch that a shard takes in at once, others waiting
BULK_HELD_MAX_BYTES: Final = 16 * MIB  # in the beginnings of batches, one a range
BULK_WRITES_MAX: Final = 2  # batches under way to one range
BULK_SENT_MAX_BYTES: Final = 32 * MIB  # in batches under way: above it no more is sent
BULK_ROWS_MIN: Final = 4 * KIB  # an INSERT ... SELECT of so many rows goes in batches

# --- plans
PLAN_CACHE_MAX_ENTRIES: Final = 5_000
SCAN_BOUNDS_MAX: Final = 64  # column bounds of one scan, the rest only filter
SCAN_BOUND_MAX_BYTES: Final = KIB  # of an encoded value; a longer one does not bound
PROGRAMS_PER_NODE_MAX: Final = 20_000  # registered row programs on one shard, oldest go first

# --- rpc
RPC_MESSAGE_MAX_BYTES: Final = 512 * MIB
RPC_CHUNK_BYTES: Final = 4 * MIB  # target size of one chunk of a result stream
RPC_STREAM_CREDIT_CHUNKS: Final = 8  # chunks of one stream that may be unacknowledged

# --- transactions
TXN_BUFFER_MAX_BYTES: Final = 4 * GIB  # buffered writes of one transaction on one range
TXN_ROW_BYTES: Final = 1 * KIB  # about what a row written by itself takes beside its own bytes
TXN_STATEMENTS_MAX: Final = 10_000_000
LOCK_WAITERS_MAX: Final = 10_000  # per row
LOCK_SPARE_ROWS: Final = 32  # beyond LIMIT that a query with SKIP LOCKED looks at in one go
LOCKS_LISTED_MAX: Final = 10_000  # of one shard in pg_locks
WAIT_EDGES_MAX: Final = 10_000  # in a report of who waits for whom; the rest when these are over
WAIT_REPORTED_MS: Final = 50  # a wait that lasts so long is reported to the detector of deadlocks
WAIT_REPORTS_PAUSE_MS: Final = 50  # between two questions to one shard for who waits for whom
ORACLE_BLOCK_MS: Final = 3_000  # how far ahead the oracle's bound is persisted
PREPARED_SILENCE_MS: Final = 1_000  # before a participant starts recovery of a prepared transaction
SCHEMA_CHANGE_WAIT_MS: Final = 60_000  # of a statement for the end of a schema change
WRITERS_DRAIN_MS: Final = 10_000  # of a schema change for the end of transactions in its way
IDLE_TXN_EXPIRY_MS: Final = 60_000  # unprepared state whose coordinator is gone

# --- storage
SPANS_PER_TABLE_MAX: Final = 1_000  # of what a SERIALIZABLE transaction has read, then coarser
LOG_RECORD_MAX_BYTES: Final = 2 * GIB - 1
LOG_FILE_TARGET_BYTES: Final = 256 * MIB
LOG_BATCH_MAX_BYTES: Final = 64 * MIB
LOG_READ_BYTES: Final = 4 * MIB  # of a file at a time in recovery, or one record
LOG_LAZY_MAX_MS: Final = 20  # how long a record in no hurry waits for one that is
LOG_ZEROED_FIRST_BYTES: Final = 1 * MIB  # zeros in the first log file; each next has twice as many
LOG_ZEROED_MAX_BYTES: Final = 32 * MIB  # zeros in any log file
LOG_ZEROED_BATCH_MAX_BYTES: Final = 512 * KIB  # longer batches gain nothing from zeros
MANIFEST_REWRITE_BYTES: Final = 1 * MIB  # of edits in one file, or as many as it began with
MANIFEST_RECORD_MAX_BYTES: Final = 1 * GIB  # of edits that wait for the disk together
WRITE_BACK_BYTES: Final = 8 * MIB  # of a new file, which the kernel then begins to write
BACKGROUND_THREADS: Final = 2  # of a shard, for flushes and compactions
KEY_MAX_BYTES: Final = 8 * KIB
ROW_MAX_BYTES: Final = 64 * MIB
SCAN_BATCH_ROWS: Final = 64 * KIB
SHADOWS_MAX_BYTES: Final = 64 * MIB  # of a tablet: what is remembered of superseded rows

MEMORY_DEFAULT_BYTES: Final = 1 * GIB  # of one shard process, unless --memory says otherwise
MEMORY_MIN_BYTES: Final = 64 * MIB
MEMTABLE_MAX_BYTES: Final = 64 * MIB  # a larger one is frozen and flushed
LOG_UNSETTLED_MAX_BYTES: Final = 256 * MIB  # of log that only memtables hold; above it they flush
SEGMENT_TARGET_BYTES: Final = 256 * MIB  # a larger one ends at the next key
SEGMENT_GROUP_ROWS: Final = 64 * KIB  # rows of one row group
SEGMENT_GROUP_TARGET_BYTES: Final = 64 * MIB  # a row group that has grown larger ends
SEGMENT_REMOVAL_MS: Final = 3_000  # from when nothing names a file; scans should be over
RUNS_MERGE_MIN: Final = 4  # runs of about one size that are worth a merge
RUNS_SIZE_RATIO: Final = 2  # a run this much larger than all newer ones of a merge stays out of it
RUNS_TARGET_MAX: Final = 8  # runs of segments in one tablet; more are merged whatever their sizes
RUNS_STALL_MAX: Final = 24  # writers wait above it
TOMBSTONES_REWRITE_PART: Final = 4  # the oldest runs merge if over 1 / this are deletions
GC_TTL_MS: Final = 10 * 60 * 1000  # how long overwritten versions are kept for older snapshots
INGEST_MIN_BYTES: Final = 4 * MIB  # smaller bulk inserts go through the log, row by row
MAINTENANCE_TICK_MS: Final = 100
CACHE_TRIM_MS: Final = 1_000  # how often caches are held against their budget
MAINTENANCE_RETRY_MS: Final = 1_000  # after a flush or merge that failed

# --- numeric
NUMERIC_PRECISION_MAX: Final = 38
NUMERIC_UNCONSTRAINED_SCALE: Final = 16  # digits after the point of a numeric without (p, s)

assert RPC_CHUNK_BYTES * RPC_STREAM_CREDIT_CHUNKS < RPC_MESSAGE_MAX_BYTES
assert COPY_CHUNK_BYTES <= COPY_INBOX_MAX_BYTES
assert BULK_BATCH_BYTES <= BULK_HELD_MAX_BYTES
assert BULK_BATCH_BYTES + KEY_MAX_BYTES + ROW_MAX_BYTES < RPC_MESSAGE_MAX_BYTES
assert ROW_MAX_BYTES < CLIENT_MESSAGE_MAX_BYTES < RPC_MESSAGE_MAX_BYTES
assert KEY_MAX_BYTES < ROW_MAX_BYTES < LOG_RECORD_MAX_BYTES
assert LOG_ZEROED_BATCH_MAX_BYTES <= LOG_ZEROED_FIRST_BYTES // 2
assert SEGMENT_GROUP_TARGET_BYTES + ROW_MAX_BYTES + KEY_MAX_BYTES < 2 * GIB  # int32 offsets
assert RUNS_MERGE_MIN <= RUNS_TARGET_MAX < RUNS_STALL_MAX
assert INGEST_MIN_BYTES < MEMORY_MIN_BYTES
assert LOG_ZEROED_FIRST_BYTES <= LOG_ZEROED_MAX_BYTES <= LOG_FILE_TARGET_BYTES
assert STATEMENT_MAX_BYTES <= CLIENT_MESSAGE_MAX_BYTES
