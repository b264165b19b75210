"""`python -m platform.run`: train, evaluate and track one stage."""

from platform._door import start

if __name__ == "__main__":
    start("run")
