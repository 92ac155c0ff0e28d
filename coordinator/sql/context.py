"""What the binders of one statement share."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.catalog import Catalog
from coordinator.sql import catalog_tables
from coordinator.sql import typesystem as ts
from coordinator.sql.coerce import Coercer, Parameters
from coordinator.sql.lexer import Token
from coordinator.sql.operators import Operators
from shardb.program import TypeRef


class Context:
    """What one statement's binders share."""

    def __init__(
        self, catalog: Catalog, text: str, declared: list[TypeRef], oids: Sequence[int] = ()
    ) -> None:
        self.catalog = catalog
        self.text = text
        self.tokens: list[Token] = []
        self.user = "shardb"
        self.parameters = Parameters(declared)
        for index, oid in enumerate(oids):
            element = ts.element_of(oid)
            if element is not None:
                self.parameters.arrays[index] = element
        self.coercer = Coercer(self.parameters)
        self.operators = Operators(self.coercer)
        self.uses_now = False
        self._aliases = 0
        self.depth = 0

    def alias(self, prefix: str = "s") -> str:
        """A fresh engine name."""
        self._aliases += 1
        return f"{prefix}{self._aliases}"

    def relation_oid(self, name: str, schema: str) -> int | None:
        """The OID of a table or catalog table."""
        table = self.catalog.lookup(name, schema)
        if table is not None:
            return table.id
        return catalog_tables.oid_of(name)
