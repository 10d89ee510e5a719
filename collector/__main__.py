"""`python -m collector` is `llama-collector`."""

import sys

from collector.cli import main

sys.exit(main())
