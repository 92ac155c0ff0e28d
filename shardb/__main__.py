"""`python -m shardb` is the `shardb` command."""

import sys

from shardb.cli import main

sys.exit(main())
