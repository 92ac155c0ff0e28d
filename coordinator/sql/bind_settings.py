"""SELECT current_setting(...) and set_config(...): the session's parameters, so no query at all.

Drivers and tools ask for them alone, with constants; in an expression they are refused elsewhere.
"""

from __future__ import annotations

from typing import Final

from sqlglot import exp

from coordinator.plan.plans import OutColumn, UtilityPlan
from coordinator.sql import typesystem as ts

_CALLS: Final = {"current_setting": (1, 2), "set_config": (3, 3)}


def settings_plan(tree: exp.Expression) -> UtilityPlan | None:
    """The plan of a SELECT of nothing but such calls; its args are (name, value or None, local)."""
    if not isinstance(tree, exp.Select) or tree.args.get("from_") or tree.args.get("where"):
        return None
    columns, args = [], []
    for item in tree.expressions:
        alias = item.alias if isinstance(item, exp.Alias) else ""
        call = item.this if isinstance(item, exp.Alias) else item
        if isinstance(call, exp.Dot) and call.this.name == "pg_catalog":
            call = call.args["expression"]
        if not isinstance(call, exp.Anonymous) or str(call.this).lower() not in _CALLS:
            return None
        name = str(call.this).lower()
        least, most = _CALLS[name]
        given = call.expressions
        if not least <= len(given) <= most or not all(
            isinstance(one, (exp.Literal, exp.Boolean)) for one in given
        ):
            return None
        value = str(given[1].this) if name == "set_config" else None
        local = name == "set_config" and bool(given[2].this)
        columns.append(OutColumn(alias or name, ts.TEXT))
        args.append((str(given[0].this), value, local))
    if not args:
        return None
    return UtilityPlan("settings", tuple(args), "SELECT 1", tuple(columns))
