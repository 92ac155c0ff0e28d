# A constant of the build: see sanitize.h.

cdef extern from "sanitize.h":
    enum:
        PIECEWISE "SHARDB_PIECEWISE"
