"""`python -m swap_fast`: what the library does from the command line."""

import sys
from collections.abc import Callable

from swap_fast import __version__
from swap_fast.averaging_files.command import average
from swap_fast.choices import choose
from swap_fast.options import name_the_user

COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "average": (average, "average finished models from files: average --help"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 for bad input, 1 for what failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name_the_user()
    if arguments == ["--version"]:
        print(f"swap_fast {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m swap_fast COMMAND ...\n")
        for name, (_, summary) in COMMANDS.items():
            print(f"  {name:<11} {summary}")
        return 0 if arguments else 2
    try:
        command, _ = COMMANDS[choose("command", arguments[0], COMMANDS)]
        return command(arguments[1:])
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"swap_fast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("swap_fast: interrupted", file=sys.stderr)
        return 130
    except (RuntimeError, OSError) as error:
        print(f"swap_fast: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
