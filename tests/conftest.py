"""Put this folder on the import path, so that every test can say `from tiny import tiny_llama`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
