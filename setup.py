"""Builds the Cython extensions of `shardb/_core`; everything else is in pyproject.toml.

SHARDB_SANITIZE=1 builds them for `tools/asan`: with the address and undefined behaviour sanitizers
of gcc, and with memory taken piece by piece (`SHARDB_SANITIZE` in the sources), so that no arena
hides a read past the end of one row.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

CORE = Path("shardb/_core")

FAST = ["-O3", "-g0"]
SANITIZED = [
    "-O1",
    "-g1",
    "-fno-omit-frame-pointer",
    # -fno-wrapv: Python's own flags define signed overflow, other Pythons' do not.
    "-fno-wrapv",
    "-fsanitize=address,undefined,float-cast-overflow",
    "-DSHARDB_SANITIZE",
]
sanitize = os.environ.get("SHARDB_SANITIZE") == "1"

extensions = [
    Extension(
        f"shardb._core.{source.stem}",
        [str(source)],
        extra_compile_args=[
            *(SANITIZED if sanitize else FAST),
            "-fno-strict-aliasing",
            "-Wno-unused-function",
        ],
        extra_link_args=["-fsanitize=address,undefined"] if sanitize else [],
    )
    for source in sorted(CORE.glob("*.pyx"))
]

CORES = len(os.sched_getaffinity(0))

setup(
    options={"build_ext": {"parallel": CORES}},
    ext_modules=cythonize(
        extensions,
        nthreads=CORES,
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
        },
    ),
)
