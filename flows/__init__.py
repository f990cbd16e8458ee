"""The order of the stages: flows, recipe and command line. Importing it sets the environment of the engines."""

import os
import sys


def _leave_start_folder() -> None:
    """Removes what `python -m` and the installed command put first on `sys.path`: the current folder, or the command's.

    A module there must not hide an installed one. Where the package itself is imported from it, it stays.
    """
    program = sys.argv[0] if sys.argv else ""
    is_command = program == "-m" or os.path.basename(program) == "bloomery"
    package_folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if is_command and not sys.flags.safe_path and sys.path[0] != package_folder:
        del sys.path[0]


_leave_start_folder()  # before anything that is not built in, or loaded at the start of Python, is imported

from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment  # noqa: E402

apply_engine_environment()
