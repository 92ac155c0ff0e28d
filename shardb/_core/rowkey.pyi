"""Key bounds for compiled code: nothing for Python callers."""
