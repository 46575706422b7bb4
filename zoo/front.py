"""What every command line of the project shares: one-line errors, exit codes, one-line warnings.

Exit codes: 0 done, 1 a failure of ours or of the machine, 2 the user's mistake, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

from zoo.errors import ZooError

INTERRUPTED = 130


def run(command: click.Command, prog: str, argv: Sequence[str] | None = None, *, speaks: bool = True) -> int:
    """Run a click command and return its exit code; errors are one line on stderr, `--debug` shows the traceback.

    `speaks`: whether this process tells of a mistyped command line; of several started alike, one does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    warnings.showwarning = _show_warning
    try:
        code = command.main(arguments, prog_name=prog, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        if not speaks:
            return 2
        where = error.ctx.command_path if error.ctx else prog
        return _say(prog, f"{error.format_message()} Try `{where} --help`.", debug, 2)
    except ZooError as error:
        return _say(prog, str(error), debug, 2)
    except (KeyboardInterrupt, click.Abort):
        return _say(prog, "interrupted", False, INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); point stdout away so that the interpreter's last flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _say(prog, f"{type(error).__name__}: {what}", debug, 1)


def _say(prog: str, text: str, debug: bool, code: int) -> int:
    if debug:
        raise
    print(f"{prog}: {' '.join(text.split())}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def bar(total: int, what: str, unit: str) -> Any:
    """Return a progress bar with rate and time left on stderr; it shows nothing when stderr is not a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, leave=False, disable=None)
