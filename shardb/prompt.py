"""A plain SQL prompt for machines without psql: the simple query protocol over one socket.

It prints what came back and nothing more; who wants more installs psql or pgcli.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from typing import Final
from urllib.parse import unquote, urlsplit

from shardb.errors import SqlError

PROTOCOL_3: Final = 196_608
MESSAGE_MAX_BYTES: Final = 1 << 30
DEFAULT_PORT: Final = 5433


class Connection:
    """One session. `query` gives printable lines."""

    def __init__(self, url: str) -> None:
        """Connects and logs in. 08001 if that fails."""
        parts = urlsplit(url)
        if parts.scheme not in ("postgresql", "postgres"):
            raise SqlError("08001", f"not a connection URL: {url}")
        user = unquote(parts.username or "shardb")
        database = unquote(parts.path.lstrip("/")) or user
        try:
            address = (parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORT)
            self._socket = socket.create_connection(address)
            self._socket.settimeout(None)
        except OSError as error:
            raise SqlError("08001", f"cannot connect to {url}: {error}") from error
        self._file = self._socket.makefile("rb")
        settings = {"user": user, "database": database, "client_encoding": "UTF8"}
        body = struct.pack(">I", PROTOCOL_3)
        for name, value in settings.items():
            body += name.encode() + b"\0" + value.encode() + b"\0"
        self._socket.sendall(struct.pack(">I", len(body) + 5) + body + b"\0")
        self._until_ready([])

    def query(self, text: str) -> list[str]:
        """Runs statements; the lines to print, errors among them."""
        body = text.encode() + b"\0"
        self._socket.sendall(b"Q" + struct.pack(">I", len(body) + 4) + body)
        lines: list[str] = []
        self._until_ready(lines)
        return lines

    def close(self) -> None:
        """Says goodbye."""
        with contextlib.suppress(OSError):
            self._socket.sendall(b"X\0\0\0\4")
        self._file.close()
        self._socket.close()

    def _read(self) -> tuple[bytes, bytes]:
        header = self._file.read(5)
        if len(header) < 5:
            raise SqlError("08006", "the server closed the connection")
        length = int.from_bytes(header[1:], "big") - 4
        if not 0 <= length <= MESSAGE_MAX_BYTES:
            raise SqlError("08P01", f"the server sent a message of {length} bytes")
        return header[:1], self._file.read(length)

    def _until_ready(self, lines: list[str]) -> None:
        names: list[str] = []
        rows: list[list[str]] = []
        while True:
            kind, body = self._read()
            if kind == b"Z":
                return
            if kind == b"T":
                names, rows = _column_names(body), []
            elif kind == b"D":
                rows.append(_values(body))
            elif kind == b"C":
                if names:
                    lines += _table(names, rows)
                    names = []
                lines.append(body[:-1].decode(errors="replace"))
            elif kind in (b"E", b"N"):
                lines.append(_report(body))
            elif kind == b"R" and body[:4] != b"\0\0\0\0":
                raise SqlError("08001", "the server wants a password; use psql")


def _column_names(body: bytes) -> list[str]:
    names = []
    offset = 2
    for _ in range(int.from_bytes(body[:2], "big")):
        end = body.index(b"\0", offset)
        names.append(body[offset:end].decode(errors="replace"))
        offset = end + 19  # the terminator and 18 bytes of types and formats
    return names


def _values(body: bytes) -> list[str]:
    values = []
    offset = 2
    for _ in range(int.from_bytes(body[:2], "big")):
        length = int.from_bytes(body[offset : offset + 4], "big", signed=True)
        offset += 4
        if length < 0:
            values.append("")
            continue
        values.append(body[offset : offset + length].decode(errors="replace"))
        offset += length
    return values


def _table(names: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]

    def line(values: list[str]) -> str:
        cells = (value.ljust(width) for value, width in zip(values, widths, strict=True))
        return " | ".join(cells).rstrip()

    return [line(names), "-+-".join("-" * width for width in widths), *map(line, rows)]


def _report(body: bytes) -> str:
    fields = {field[:1]: field[1:].decode(errors="replace") for field in body.split(b"\0") if field}
    text = f"{fields.get(b'S', 'ERROR')}: {fields.get(b'C', '')}: {fields.get(b'M', '')}"
    detail = fields.get(b"D")
    return f"{text}\nDETAIL: {detail}" if detail else text


def run(url: str, command: str | None) -> int:
    """Runs one command, or what is typed until the end of input; the exit code."""
    connection = Connection(url)
    try:
        if command is not None:
            print("\n".join(connection.query(command)))
            return 0
        text = ""
        while True:
            try:
                text += input("shardb-> " if text else "shardb=> ") + "\n"
            except EOFError:
                if sys.stdin.isatty():
                    print()
                return 0
            if text.strip() in ("\\q", "exit", "quit"):
                return 0
            if text.rstrip().endswith(";"):
                print("\n".join(connection.query(text)))
                text = ""
            elif not text.strip():
                text = ""
    finally:
        connection.close()
