"""`python -m lpn_fast.cli`, the same as `lpn-fast`."""

import sys

from . import main

sys.exit(main())
