"""The command line: finds the command, and leaves its arguments to it."""

import os
import select
import sys
from collections.abc import Callable

from bench import commands
from swap_fast.choices import choose
from swap_fast.training.interruption import EXIT_STATUS, InterruptedRunError

COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "recipes": (commands.recipes, "list the recipes, with the paper's table and what each needs"),
    "run": (commands.run, "run a recipe and write its record: run RECIPE --help"),
    "watch": (commands.watch, "follow a run in the terminal, from another process"),
    "submit": (commands.submit, "run a recipe as jobs of SLURM, which go on when pre-empted"),
    "table": (commands.table, "run what a table of the paper lacks, and draw it: table 1 to 6"),
    "figure": (commands.figure, "draw a figure of the paper, 1 to 6; runs what is missing"),
    "report": (commands.report, "draw tables, figures and the report from the records"),
    "compare": (commands.compare, "two recipes, runs or folders: compare A B, with intervals"),
    "export": (commands.export, "write runs as DAWNBench, MLPerf, CSV, LaTeX, ONNX: export --help"),
    "search": (commands.search, "try settings of a recipe on held-out training images"),
    "plan": (commands.plan, "what a recipe will take: time, memory, bytes, cost; plan --help"),
    "verify-gpu": (commands.verify_gpu, "confirm on a GPU what only a GPU can"),
    "small-tree": (commands.small_tree, "write a small tree of JPEGs, to try ImageNet's path on"),
    "prepare": (commands.prepare, "write a tree of images again at a smaller size"),
    "micro": (commands.micro, "measure a part: micro step, data, jpeg, workers, collective"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 for bad input, 75 interrupted, 1 for a failed run."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m bench COMMAND ...\n")
        for name, (_, summary) in COMMANDS.items():
            print(f"  {name:<11} {summary}")
        return 0 if arguments else 2
    try:
        command, _ = COMMANDS[choose("command", arguments[0], COMMANDS)]
        return command(arguments[1:])
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except InterruptedRunError as error:
        again = " with --resume" if arguments[0] == "run" and "--resume" not in arguments else ""
        print(f"bench: interrupted ({error}); the same command{again} goes on", file=sys.stderr)
        return EXIT_STATUS
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    except (RuntimeError, FloatingPointError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141  # as the shell says it of other programs
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _nobody_reads() -> bool:
    """Whether who read standard output, such as `head`, has seen enough and ended."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the exit
    return True
