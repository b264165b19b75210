"""`python -m platform`: the standard library's own answer, then the commands of this project."""

import platform
import sys

if __name__ == "__main__":
    terse = "terse" in sys.argv or "--terse" in sys.argv
    aliased = "nonaliased" not in sys.argv and "--nonaliased" not in sys.argv
    print(platform.platform(aliased, terse))
    print(
        "commands of this project: python -m platform.{run,generate,plan,benchmark,report,ui} --help", file=sys.stderr
    )
