"""Supervises one run on one host: ``python3 supervisor.py COMMAND --run-dir DIR``.

The whole folder is shipped to the host and this file is run by its path. See docs/contracts.md.
"""

import os
import sys

if __name__ == "__main__":
    if "GLM2_RUN_ID" in os.environ:
        # A shell with the environment of a rank: we are no process of the run, so carry no mark.
        unmarked = {name: value for name, value in os.environ.items() if name != "GLM2_RUN_ID"}
        os.execve(sys.executable, [sys.executable, *sys.argv], unmarked)
    _folder = os.path.dirname(os.path.abspath(__file__))
    # The folder as a package, whatever its name, so that its modules can import each other.
    sys.path[:] = [os.path.dirname(_folder)] + [p for p in sys.path if p != _folder]
    _package = __import__(os.path.basename(_folder) + ".commands")
    _status = _package.commands.main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(_status)  # all is said: taking the interpreter down would cost a tenth of arming
