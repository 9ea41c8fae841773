"""`python -m hf_glmd`: the same as `hf-glmd`."""

import sys

from hf_glmd.cli import main

sys.exit(main())
