"""`python -m platform.generate`: continue a text with a trained model."""

from platform._door import start

if __name__ == "__main__":
    start("generate")
