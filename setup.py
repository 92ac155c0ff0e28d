"""Builds the Cython extensions of `shardb/_core`; everything else is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

CORE = Path("shardb/_core")

extensions = [
    Extension(
        f"shardb._core.{source.stem}",
        [str(source)],
        extra_compile_args=["-O3", "-g0", "-fno-strict-aliasing", "-Wno-unused-function"],
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
