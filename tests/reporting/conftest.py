"""What tests of the report share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # synthetic_runs; pytest's importlib mode leaves the path alone
