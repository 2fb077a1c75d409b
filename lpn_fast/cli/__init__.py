"""The command line, `lpn-fast`.

A command is a module with `add_arguments(parser)` and `run(args) -> int`; its docstring is its help: a summary, a
description, examples. Exit codes:
    0    done
    1    the work failed, or a part of it; what failed is listed
    2    wrong use; one line on standard error says what and how to mend it
    130  interrupted
    141  the output was closed, by `| head` say
The environment variable LPN_FAST_TRACEBACK=1 lets errors through with their traceback.
"""

import argparse
import os
import shlex
import sys

from .. import __version__
from . import bench, completion, convert, demo, denoise, export, info, prior, reconstruct, train, tune, verify

__all__ = ["main"]

MODULES = (demo, reconstruct, denoise, prior, verify, train, convert, export, bench, tune, info, completion)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in MODULES}

DONE, FAILED, WRONG_USE, INTERRUPTED, CLOSED_PIPE = 0, 1, 2, 130, 141


class OneLineParser(argparse.ArgumentParser):
    """Reports wrong use in one line, without the usage text that argparse puts before it."""

    def error(self, message: str):
        self.exit(WRONG_USE, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code; `argv` has no program's name, None takes that of the process."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files need not be of the terminal's alphabet
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser(words[0] if words and words[0] in COMMANDS else None)
    try:
        args = parser.parse_args(words)
    except SystemExit as leave:  # --help, --version, wrong use
        return int(leave.code or DONE)
    args.command_line = shlex.join([parser.prog, *words])  # for pages that say how they came about
    if os.environ.get("LPN_FAST_TRACEBACK") == "1":
        return args.run(args)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return CLOSED_PIPE
    except KeyboardInterrupt:
        return _complain(args, f"interrupted; {getattr(args, 'when_interrupted', 'nothing was written')}", INTERRUPTED)
    except (ValueError, TypeError, FileNotFoundError) as error:
        return _complain(args, error, WRONG_USE)
    except (RuntimeError, OSError, FloatingPointError) as error:
        return _complain(args, error, FAILED)


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Of all commands, or of one, which takes a fraction of the time."""
    about = "Learned proximal networks: exact proximal operators of learned priors."
    parser = OneLineParser("lpn-fast", description=about, epilog="lpn-fast COMMAND --help shows examples.")
    parser.add_argument("--version", action="version", version=f"lpn-fast {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")
    for name, module in COMMANDS.items():
        if only in (None, name):
            summary, _, rest = module.__doc__.partition(".\n\n")
            description, title, examples = rest.partition("examples:\n")
            command = subparsers.add_parser(name, help=summary, description=description, epilog=title + examples)
            command.formatter_class = argparse.RawDescriptionHelpFormatter
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def _complain(args: argparse.Namespace, what: object, code: int) -> int:
    print(f"lpn-fast {args.command}: {' '.join(str(what).split())}", file=sys.stderr)
    return code
