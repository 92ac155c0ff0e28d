"""Only for C: see copysplit.pxd."""
