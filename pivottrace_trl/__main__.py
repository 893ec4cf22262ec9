"""`python -m pivottrace_trl`."""

import sys

from .cli import main


sys.exit(main())
