"""`python -m flows.cli`, which imports nothing from where the user happens to be, as `fortifai` does not."""

import os
import sys

# Python put the current folder first; it stays where it is named by PYTHONPATH, or holds this software itself
_here, _root = os.path.realpath("."), os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
if not sys.flags.safe_path and _here != _root and os.path.realpath(sys.path[0]) == _here:
    del sys.path[0]

from flows.cli.app import main  # noqa: E402

main()
