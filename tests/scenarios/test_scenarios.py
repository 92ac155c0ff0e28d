"""Each script of this directory gives its transcript, word for word.

`make scenarios` writes the transcripts anew (REWRITE_SCENARIOS=1): review the difference as code.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.protocol import transcript

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text()
    found = transcript(text)
    if os.environ.get("REWRITE_SCENARIOS"):
        path.write_text(found)
    else:
        assert found == text
