"""The operating system's files: whole writes, replacement in one step, locks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from shardb.env import SystemClock, SystemFiles, SystemRng


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_pwritev, whole_pwrite = os.pwritev, os.pwrite

    def some_of_many(fd: int, parts: Sequence[bytes], offset: int) -> int:
        return whole_pwritev(fd, [b"".join(parts)[:3]], offset)

    def some(fd: int, data: memoryview, offset: int) -> int:
        return whole_pwrite(fd, data[:2], offset)

    monkeypatch.setattr(os, "pwritev", some_of_many)
    monkeypatch.setattr(os, "pwrite", some)
    path = str(tmp_path / "f")
    file = SystemFiles().open_append(path)
    file.append([b"hello ", b"", b"world"])
    file.append([b"!"])
    file.sync()
    file.close()
    assert SystemFiles().read(path) == b"hello world!"


def test_many_parts_cuts_and_going_on(tmp_path: Path) -> None:
    files, path = SystemFiles(), str(tmp_path / "f")
    file = files.open_append(path)
    parts = [b"%d," % n * 200 for n in range(3000)]
    file.append(parts)
    file.truncate(10)
    file.append([b"end"])
    file.close()
    assert files.read(path) == b"".join(parts)[:10] + b"end"
    again = files.open_append(path)
    again.append([b"!"])
    again.close()
    assert files.read(path)[-4:] == b"end!"


def test_new_files_replace_old_ones(tmp_path: Path) -> None:
    files = SystemFiles()
    files.make_directory(str(tmp_path / "a" / "b"))
    files.make_directory(str(tmp_path / "a" / "b"))
    path = str(tmp_path / "a" / "b" / "f")
    assert not files.exists(path)
    for data in (b"long content", b"short"):
        files.write_new(path, data)
        assert files.read(path) == data
    assert files.names(str(tmp_path / "a" / "b")) == ["f"]


def test_a_lock_is_exclusive_until_closed(tmp_path: Path) -> None:
    files, path = SystemFiles(), str(tmp_path / "LOCK")
    first = files.lock(path)
    assert first is not None
    assert files.lock(path) is None
    first.close()
    second = files.lock(path)
    assert second is not None
    second.close()


def test_clock_and_randomness() -> None:
    clock = SystemClock()
    first = clock.monotonic_ms()
    assert clock.monotonic_ms() >= first
    assert clock.wall_ms() > 1_700_000_000_000
    assert SystemRng().token(16) != SystemRng().token(16)
