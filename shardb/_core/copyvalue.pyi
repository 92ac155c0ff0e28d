"""Only for C: see copyvalue.pxd."""
