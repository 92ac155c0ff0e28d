"""Builds the Cython extensions of `shardb/_core`; everything else is in pyproject.toml.

SHARDB_SANITIZE=address or =thread builds them for `tools/sanitize`; with `address`, memory is taken
piece by piece too (`shardb/_core/sanitize.h`), so that no arena hides a read past the end of a row.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

CORE = Path("shardb/_core")

FAST = ["-O3", "-g0"]
CHECKED = ["-O1", "-g1", "-fno-omit-frame-pointer"]
SANITIZERS = {
    # -fno-wrapv: Python's own flags may define signed overflow, other Pythons' do not.
    "address": ["-fsanitize=address,undefined,float-cast-overflow", "-fno-wrapv"],
    "thread": ["-fsanitize=thread"],
}
kind = os.environ.get("SHARDB_SANITIZE", "")
flags = [*CHECKED, *SANITIZERS[kind]] if kind else FAST
if kind == "address":
    flags.append("-DSHARDB_PIECEWISE_ALLOCATION")

extensions = [
    Extension(
        f"shardb._core.{source.stem}",
        [str(source)],
        extra_compile_args=[*flags, "-fno-strict-aliasing", "-Wno-unused-function"],
        extra_link_args=SANITIZERS[kind][:1] if kind else [],
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
