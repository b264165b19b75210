"""`python -m platform.benchmark`: measure, and record what was measured."""

from platform._door import start

if __name__ == "__main__":
    start("benchmark")
