"""Run-time parameters of a session: SHOW, SET, RESET, start-up options and ParameterStatus.

A parameter has a default, a check that normalizes a new value, and whether changes are reported to
the client. Parameters of PostgreSQL that change nothing here are accepted so that drivers can set
them; one that would change meaning (say, `standard_conforming_strings = off`) is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.isolation import SERIALIZABLE
from shardb.errors import SqlError, unsupported

SERVER_VERSION: Final = "15.8"
SERVER_VERSION_NUM: Final = "150008"

_TRUE: Final = frozenset({"on", "true", "yes", "1", "t", "y"})
_FALSE: Final = frozenset({"off", "false", "no", "0", "f", "n"})
_UNITS_MS: Final = {
    "": 1,
    "us": 0.001,
    "ms": 1,
    "s": 1000,
    "min": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
}
_UTC: Final = frozenset({"utc", "gmt", "etc/utc", "etc/gmt", "zulu", "uct", "0", "utc0", "+00:00"})


def _invalid(name: str, value: str, hint: str = "") -> SqlError:
    return SqlError("22023", f'invalid value for parameter "{name}": "{value}"', hint=hint)


def _any(name: str, value: str) -> str:
    return value


def _bool(name: str, value: str) -> str:
    lowered = value.lower()
    if lowered in _TRUE:
        return "on"
    if lowered in _FALSE:
        return "off"
    raise SqlError("22023", f'parameter "{name}" requires a Boolean value')


def _only(*allowed: str) -> Callable[[str, str], str]:
    def check(name: str, value: str) -> str:
        for choice in allowed:
            if value.lower() == choice.lower():
                return choice
        raise _invalid(name, value, f"Available values: {', '.join(allowed)}.")

    return check


def _only_on(name: str, value: str) -> str:
    if _bool(name, value) == "on":
        return "on"
    raise SqlError("0A000", f'parameter "{name}" cannot be turned off')


def _encoding(name: str, value: str) -> str:
    if value.strip("'").upper().replace("-", "").replace("_", "") in ("UTF8", "UNICODE"):
        return "UTF8"
    raise SqlError("0A000", f'client encoding "{value}" is not supported', hint="Use UTF8.")


def _milliseconds(name: str, value: str) -> str:
    text = value.strip().lower()
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text[len(digits) :].strip()
    try:
        amount = float(digits)
    except ValueError:
        raise _invalid(name, value) from None
    if unit not in _UNITS_MS:
        raise _invalid(name, value, 'Valid units are "us", "ms", "s", "min", "h", and "d".')
    total = round(amount * _UNITS_MS[unit])
    if not 0 <= total <= 2**31 - 1:
        raise _invalid(name, value)
    return str(total)


def _integer(name: str, value: str) -> str:
    try:
        return str(int(value))
    except ValueError:
        raise _invalid(name, value) from None


def _date_style(name: str, value: str) -> str:
    parts = {part.strip().lower() for part in value.split(",")}
    if parts - {"iso", "mdy", "us", "noneuropean", ""}:
        raise SqlError("0A000", f'DateStyle "{value}" is not supported', hint="Use ISO, MDY.")
    return "ISO, MDY"


def _read_only(name: str, value: str) -> str:
    raise SqlError("55P02", f'parameter "{name}" cannot be changed')


@dataclass(frozen=True, slots=True)
class Parameter:
    """One run-time parameter. `unit_ms`: shown with a time unit as PostgreSQL does."""

    name: str
    default: str
    check: Callable[[str, str], str] = _any
    reported: bool = False
    unit_ms: bool = False

    @property
    def noted(self) -> bool:
        """True if `Settings` keeps what follows from it."""
        return self.unit_ms or self.name.startswith("default_transaction_")


_LEVELS: Final = ("read committed", "read uncommitted", "repeatable read", "serializable")

PARAMETERS: Final[Mapping[str, Parameter]] = {
    parameter.name.lower(): parameter
    for parameter in (
        Parameter("application_name", "", _any, True),
        Parameter("client_encoding", "UTF8", _encoding, True),
        Parameter("DateStyle", "ISO, MDY", _date_style, True),
        Parameter("default_transaction_read_only", "off", _bool, True),
        Parameter("in_hot_standby", "off", _read_only, True),
        Parameter("integer_datetimes", "on", _read_only, True),
        Parameter("IntervalStyle", "postgres", _only("postgres"), True),
        Parameter("is_superuser", "on", _read_only, True),
        Parameter("server_encoding", "UTF8", _read_only, True),
        Parameter("server_version", SERVER_VERSION, _read_only, True),
        Parameter("session_authorization", "shardb", _read_only, True),
        Parameter("standard_conforming_strings", "on", _only_on, True),
        Parameter("TimeZone", "UTC", _any, True),
        Parameter("server_version_num", SERVER_VERSION_NUM, _read_only),
        Parameter("search_path", '"$user", public'),
        Parameter("client_min_messages", "notice"),
        Parameter("extra_float_digits", "1", _integer),
        Parameter("bytea_output", "hex", _only("hex")),
        Parameter("statement_timeout", "0", _milliseconds, unit_ms=True),
        Parameter("lock_timeout", "0", _milliseconds, unit_ms=True),
        Parameter("idle_in_transaction_session_timeout", "0", _milliseconds, unit_ms=True),
        Parameter("idle_session_timeout", "0", _milliseconds, unit_ms=True),
        Parameter("transaction_isolation", "read committed", _only(*_LEVELS)),
        Parameter("default_transaction_isolation", "read committed", _only(*_LEVELS)),
        Parameter("transaction_read_only", "off", _bool),
        Parameter("default_transaction_deferrable", "off", _bool),
        Parameter("synchronous_commit", "on"),
        Parameter("row_security", "off", _bool),
        Parameter("check_function_bodies", "on", _bool),
        Parameter("default_table_access_method", "heap"),
        Parameter("default_tablespace", ""),
        Parameter("xmloption", "content"),
        Parameter("escape_string_warning", "on", _bool),
        Parameter("backslash_quote", "safe_encoding"),
        Parameter("default_with_oids", "off", _only("off")),
        Parameter("geqo", "on", _bool),
        Parameter("jit", "off", _bool),
        Parameter("work_mem", "4MB"),
        Parameter("maintenance_work_mem", "64MB"),
        Parameter("max_parallel_workers_per_gather", "0", _integer),
        Parameter("enable_seqscan", "on", _bool),
        Parameter("lc_collate", "C", _read_only),
        Parameter("lc_ctype", "C.UTF-8", _read_only),
        Parameter("lc_messages", "C"),
        Parameter("lc_monetary", "C"),
        Parameter("lc_numeric", "C"),
        Parameter("lc_time", "C"),
        Parameter("max_identifier_length", "63", _read_only),
        Parameter("max_index_keys", "32", _read_only),
        Parameter("block_size", "8192", _read_only),
        Parameter("wal_level", "replica", _read_only),
        Parameter("max_connections", "1000", _read_only),
        Parameter("log_statement", "none"),
        Parameter("log_min_messages", "warning"),
        Parameter("tcp_keepalives_idle", "0"),
    )
}


class Settings:
    """The parameters of one session. Names are case-insensitive; `a.b` may be anything."""

    __slots__ = (
        "_defaults",
        "_local",
        "_values",
        "default_level",
        "default_read_only",
        "idle_in_transaction_s",
        "limited",
        "lock_timeout_s",
        "serializable",
        "statement_timeout_s",
    )

    def __init__(self) -> None:
        self._defaults: dict[str, str] = {}  # what RESET goes back to, from the start-up packet
        self._values: dict[str, str] = {}
        self._local: dict[str, str | None] = {}  # what to restore at the end of the transaction
        self._note_limits()

    def _note_limits(self) -> None:
        """Keeps at hand what every statement asks for; time limits in seconds, 0 is none."""
        self.default_level = self.get("default_transaction_isolation")
        self.serializable = self.default_level == SERIALIZABLE
        self.default_read_only = self.get("default_transaction_read_only") == "on"
        self.statement_timeout_s = int(self.get("statement_timeout")) / 1000
        self.lock_timeout_s = int(self.get("lock_timeout")) / 1000
        self.idle_in_transaction_s = int(self.get("idle_in_transaction_session_timeout")) / 1000
        self.limited = bool(self.statement_timeout_s or self.lock_timeout_s)

    def get(self, name: str) -> str:
        """The current value; an unknown name is 42704."""
        key = name.lower()
        if key in self._values:
            return self._values[key]
        return self.default(name)

    def default(self, name: str) -> str:
        """What RESET sets."""
        key = name.lower()
        if key in self._defaults:
            return self._defaults[key]
        return self._parameter(name).default

    def shown(self, name: str) -> str:
        """The value as SHOW prints it."""
        value = self.get(name)
        parameter = PARAMETERS.get(name.lower())
        if parameter is None or not parameter.unit_ms or value == "0":
            return value
        amount = int(value)
        for unit in ("d", "h", "min", "s"):
            if amount % int(_UNITS_MS[unit]) == 0:
                return f"{amount // int(_UNITS_MS[unit])}{unit}"
        return f"{amount}ms"

    def set(self, name: str, value: str | None, local: bool = False) -> str | None:
        """Sets (None: to the default); returns the new value if the client is to be told."""
        key = name.lower()
        parameter = self._parameter(name)
        checked = self.default(name) if value is None else parameter.check(parameter.name, value)
        if key == "timezone":
            checked = _time_zone(checked)
        before = self._values.get(key)
        if local and key not in self._local:
            self._local[key] = before
        self._values[key] = checked
        if parameter.noted:
            self._note_limits()
        return checked if parameter.reported else None

    def start(self, name: str, value: str) -> None:
        """Takes a parameter of the start-up packet: it becomes what RESET goes back to.

        A driver that names its machine's zone there is told in ParameterStatus that it is UTC.
        """
        if name.lower() == "timezone":
            value = "UTC"
        self.set(name, value)
        self._defaults[name.lower()] = self._values[name.lower()]

    def identify(self, user: str) -> None:
        """Sets who the session is."""
        self._defaults["session_authorization"] = user

    def reset_all(self) -> list[tuple[str, str]]:
        """RESET ALL / DISCARD ALL; returns the reported parameters that changed."""
        changed = [name for name in self._values if self._values[name] != self.default(name)]
        self._values.clear()
        self._local.clear()
        self._note_limits()
        return [
            (PARAMETERS[name].name, self.get(name))
            for name in changed
            if name in PARAMETERS and PARAMETERS[name].reported
        ]

    def end_transaction(self) -> list[tuple[str, str]]:
        """Undoes SET LOCAL; returns the reported parameters that changed."""
        changed: list[tuple[str, str]] = []
        if not self._local:
            return changed
        for key, before in self._local.items():
            if before is None:
                self._values.pop(key, None)
            else:
                self._values[key] = before
            if key in PARAMETERS and PARAMETERS[key].reported:
                changed.append((PARAMETERS[key].name, self.get(key)))
        self._local.clear()
        self._note_limits()
        return changed

    def reported(self) -> list[tuple[str, str]]:
        """Every reported parameter with its value, for the start of the session."""
        return [(p.name, self.get(key)) for key, p in PARAMETERS.items() if p.reported]

    def everything(self) -> list[tuple[str, str]]:
        """Every parameter with its value as SHOW ALL lists them."""
        names = sorted({*PARAMETERS, *self._values})
        return [(PARAMETERS[n].name if n in PARAMETERS else n, self.shown(n)) for n in names]

    def _parameter(self, name: str) -> Parameter:
        found = PARAMETERS.get(name.lower())
        if found is not None:
            return found
        if "." in name:
            return Parameter(name, "")
        raise SqlError("42704", f'unrecognized configuration parameter "{name}"')


def _time_zone(value: str) -> str:
    """UTC by any of its names; 0A000 for the zones of other clocks."""
    if value.lower() in _UTC:
        return value
    raise unsupported(f'time zone "{value}"', "Timestamps are shown in UTC.")
