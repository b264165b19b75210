"""`python -m platform.ui`: open MLflow on the runs of this folder."""

from platform._door import start

if __name__ == "__main__":
    start("ui")
