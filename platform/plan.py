"""`python -m platform.plan`: count a model without building it."""

from platform._door import start

if __name__ == "__main__":
    start("plan")
