"""The `shardb` command: start a cluster, look at it and at its files, talk SQL to it."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shardb import limits, prompt, supervisor
from shardb.datadir import ClusterInfo, DirectoryError, read_cluster_info
from shardb.errors import SqlError
from shardb.meta import schema
from shardb.meta.descriptors import Node, Range, Table
from shardb.meta.remote import RemoteStore

DEFAULT_DATA: Final = "shardb-data"
CLIENTS: Final = ("pgcli", "psql")
STATUS_TIMEOUT_SECONDS: Final = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (DirectoryError, SqlError) as error:
        message = error.message if isinstance(error, SqlError) else str(error)
        print(f"shardb: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shardb", description="A sharded SQL database.")
    commands = parser.add_subparsers(required=True, metavar="command")

    start = commands.add_parser("start", help="run a cluster on this machine, in the foreground")
    start.add_argument(
        "--shards", type=_positive, default=0, help="shard processes (default: 2, or as before)"
    )
    start.add_argument("--port", type=_port, default=supervisor.DEFAULT_PORT, help="client port")
    start.add_argument("--listen", default=supervisor.DEFAULT_LISTEN, metavar="ADDR")
    start.add_argument(
        "--memory",
        type=_size,
        default=0,
        metavar="SIZE",
        help="of all processes together, as 4GiB or 800MiB (default: half of the machine's)",
    )
    start.add_argument(
        "--gc-ttl",
        type=_positive,
        default=limits.GC_TTL_MS // 1000,
        metavar="SECONDS",
        help="how long overwritten rows are kept for older snapshots (default: %(default)s)",
    )
    _add_data(start)
    start.set_defaults(run=_start)

    status = commands.add_parser("status", help="what the cluster on a directory consists of")
    _add_data(status)
    status.set_defaults(run=_status)

    sql = commands.add_parser("sql", help="a prompt (pgcli or psql if there is one)")
    sql.add_argument("url", nargs="?", help="default: the cluster that runs on --data")
    sql.add_argument("-c", "--command", help="run this and end")
    _add_data(sql)
    sql.set_defaults(run=_sql)

    storage = commands.add_parser("storage", help="look at the files of a cluster that is stopped")
    actions = storage.add_subparsers(required=True, metavar="action", dest="action")
    for action, help_text in (
        ("ls", "what is in them"),
        ("verify", "read every byte; exit code 1 if any is damaged"),
    ):
        command = actions.add_parser(action, help=help_text)
        command.add_argument(
            "directory",
            nargs="?",
            type=Path,
            default=Path(DEFAULT_DATA),
            metavar="DIR",
            help="a cluster's data directory or that of one shard (default: %(default)s)",
        )
        command.set_defaults(run=_storage)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=Path(DEFAULT_DATA), metavar="DIR")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+) ?([KMG]i?B?)?", text, re.IGNORECASE)
    if match is None or int(match[1]) < 1:
        raise argparse.ArgumentTypeError(f"expected a size like 4GiB or 800MiB, got {text!r}")
    unit = {"": 1, "K": limits.KIB, "M": limits.MIB, "G": limits.GIB}
    return int(match[1]) * unit[(match[2] or "")[:1].upper()]


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"expected a port between 1 and 65535, got {text!r}")
    return int(text)


def _start(options: argparse.Namespace) -> int:
    return supervisor.run_cluster(
        supervisor.Options(
            options.data,
            options.shards,
            options.port,
            options.listen,
            options.memory,
            options.gc_ttl * 1000,
        )
    )


def _status(options: argparse.Namespace) -> int:
    info = read_cluster_info(options.data)
    print(asyncio.run(_describe(info)))
    return 0


async def _describe(info: ClusterInfo) -> str:
    store = RemoteStore(info.meta, STATUS_TIMEOUT_SECONDS)
    try:
        await store.connect()
        nodes = {node.id: node for node in await schema.read_all(store, Node)}
        tables = await schema.read_all(store, Table)
        ranges = await schema.read_all(store, Range)
    finally:
        await store.close()
    return describe(info, nodes, tables, ranges)


def describe(
    info: ClusterInfo, nodes: dict[int, Node], tables: Sequence[Table], ranges: Sequence[Range]
) -> str:
    """The text of `shardb status`."""
    lines = [f"url     {info.url}", f"pid     {info.pid}", f"shards  {info.shards}"]
    for number in range(1, info.shards + 1):
        node = nodes.get(number)
        held = sum(piece.primary == number for piece in ranges)
        state = "down" if node is None else f"up, {held} ranges, {node.address}"
        lines.append(f"  shard {number}: {state}")
    lines.append(f"tables  {len(tables)}")
    for table in sorted(tables, key=lambda table: (table.schema, table.name)):
        mine = [piece.primary for piece in ranges if piece.group_id == table.group_id]
        where = ", ".join(str(number) for number in sorted(set(mine)))
        lines.append(f"  {table.schema}.{table.name}: {len(mine)} ranges on shards {where}")
    return "\n".join(lines)


def _sql(options: argparse.Namespace) -> int:
    url = options.url or read_cluster_info(options.data).url
    for name in CLIENTS:
        if name == "pgcli" and (options.command is not None or not sys.stdin.isatty()):
            continue  # it is for people only
        program = shutil.which(name)
        if program is not None:
            command = [name, url]
            if options.command is not None:
                command += ["-c", options.command]
            os.execv(program, command)
    return prompt.run(url, options.command)


def _storage(options: argparse.Namespace) -> int:
    # Here, since it takes a second to import that the other commands need not wait.
    from shardb import storage_cli

    return storage_cli.run(options.action, options.directory, print)


if __name__ == "__main__":
    sys.exit(main())
