"""What every command file calls, so that a clone without an installation says what to do."""

import sys

SETUP = "python -m pip install -c constraints.txt -e ."


def start(command: str) -> None:
    """Runs `superblock <command>` with the rest of the command line."""
    try:
        from superblock.cli.__main__ import main
    except ModuleNotFoundError as missing:
        if missing.name not in ("superblock", "superblock.cli"):
            raise
        sys.exit(f"superblock is not installed in {sys.executable}\nfrom the root of the repository run: {SETUP}")
    sys.argv.insert(1, command)
    main()
