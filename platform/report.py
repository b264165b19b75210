"""`python -m platform.report`: write down what was run and how it compares."""

from platform._door import start

if __name__ == "__main__":
    start("report")
