"""Peak memory of a training command.

    python benchmarks/workers/memory.py ARGUMENTS OF launch/train.py

Prints the highest resident set of the process in MB (2**20 bytes), libraries included, loader
workers not; and on a GPU the most that tensors took of its memory.
"""

from __future__ import annotations

import json
import resource
import sys

from launch import train


def main() -> None:
    code = train.main(sys.argv[1:])
    if code:
        sys.exit(code)
    import torch

    peak = {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.cuda.is_available():
        peak["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(peak))


if __name__ == "__main__":
    main()
