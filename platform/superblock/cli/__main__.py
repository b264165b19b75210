"""The console script: `superblock <command> [group=option] [key=value]`, with tab completion of both.

Completion in bash: `eval "$(superblock -sc install=bash)"`.
"""

import os
import sys
from importlib import import_module

from superblock.cli.commands import COMMANDS
from superblock.config.fields import closest
from superblock.config.typed import begun


def main() -> None:
    """Runs the command that `sys.argv` names."""
    words = sys.argv[1:]
    if words[:1] == ["-sc"]:
        command = _complete(words[1:2])
    elif not words or words[0] in ("-h", "--help"):
        print(_usage())
        return
    else:
        command = words[0]
        del sys.argv[1]
    if command is None:
        return
    if command not in COMMANDS:
        near = closest(command, COMMANDS)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"{command}: there is no such command{hint}\nthere are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    with begun(command):
        import_module(f"superblock.cli.{command}").main()


def _usage() -> str:
    lines = ["usage: superblock <command> [group=option ...] [key=value ...]", ""]
    lines += [f"  {command.name:<10} {command.summary}" for command in COMMANDS.values()]
    return "\n".join([*lines, "", "superblock <command> --help shows everything that can be set"])


def _complete(query: list[str]) -> str | None:
    """Hydra's completion knows no subcommands: completes the command here, and hides it from Hydra afterwards.

    Returns:
        The command whose settings Hydra completes; `None` when nothing is left to do.
    """
    if not query or not query[0].startswith("query="):
        return "run"  # install and uninstall are the same for every command
    words = os.environ["COMP_LINE"].split(" ")
    if len(words) < 3:
        print("\n".join(name for name in COMMANDS if name.startswith(words[-1])))
        return None
    command = words.pop(1)
    if command not in COMMANDS:
        return None
    os.environ["COMP_LINE"] = " ".join(words)
    return command


if __name__ == "__main__":
    main()
