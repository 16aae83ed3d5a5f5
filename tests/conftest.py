"""Fix the processor's instruction set, and put this folder on the import path: `from tiny import tiny_llama`."""

import os
import sys
from pathlib import Path

# oneDNN's 16-bit kernels allocate scratch memory, and how much depends on the processor. Up to AVX2 torch uses its own
# kernels, which allocate the same bytes on every x86 processor. oneDNN reads this once, at its first kernel; child
# processes inherit it. Not setdefault: bytes are compared exactly. test_instruction_sets.py tests the larger sets.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"

sys.path.insert(0, str(Path(__file__).parent))
