"""What the house style asks of files and no linter checks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("shardb", "coordinator", "tests", "bench")
LINES_MAX = 600
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CORE = sorted((ROOT / "shardb" / "_core").glob("*.pyx"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*MODULES, *CORE], ids=name_of)
def test_files_are_short_and_introduce_themselves(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= LINES_MAX, f"{lines} lines"
    if not text.strip():
        assert path.name == "__init__.py"
        return
    if path.suffix == ".py":
        assert ast.get_docstring(ast.parse(text)), "no module docstring"
    else:
        code = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert code[0].startswith('"""'), "no module docstring"


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_extensions_have_stubs(path: Path) -> None:
    assert path.with_suffix(".pyi").exists()


def test_links_in_documents_lead_somewhere() -> None:
    broken = []
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{name_of(document)}: {target}")
    assert not broken
