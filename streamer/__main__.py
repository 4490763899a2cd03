"""``python -m streamer``."""

import os
import sys

if sys.path[:1] == [os.getcwd()]:  # noqa: PTH109
    # Python put it there for ``-m``. What lies in the working directory may be anybody's, and is
    # run only where the config names it as a plug-in.
    del sys.path[0]

from streamer.cli import entry

entry()
