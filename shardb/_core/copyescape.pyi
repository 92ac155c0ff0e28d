"""Only for C: see copyescape.pxd."""
