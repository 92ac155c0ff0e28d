"""Changes bounds of `shardb.limits` in every process of a cluster under test.

Python imports this module at its start where its directory is in PYTHONPATH; `Cluster` puts it
there with the bounds as JSON in SHARDB_TEST_LIMITS. The relations between bounds that the module
asserts hold no more: whoever asks for other bounds has to keep them.
"""

from __future__ import annotations

import json
import os

if "SHARDB_TEST_LIMITS" in os.environ:
    from shardb import limits

    for name, value in json.loads(os.environ["SHARDB_TEST_LIMITS"]).items():
        assert hasattr(limits, name), name
        setattr(limits, name, value)
