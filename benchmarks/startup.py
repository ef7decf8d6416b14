"""How long `shardwright validate` takes on a script, as a multiple of `python -c "import numpy"`.

`python -m benchmarks.startup [--format json]` runs both in turn, in processes of their own, and prints the median of
each and their ratio. Times of a machine that does other work besides vary together, so the ratio is what to look at.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

SCRIPT = """\
#!/usr/bin/env bash
export CUDA_DEVICE_MAX_CONNECTIONS=1
ARGS=(
    --num-layers 32 --hidden-size 4096 --num-attention-heads 32
    --seq-length 4096 --max-position-embeddings 4096
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --sequence-parallel
    --use-distributed-optimizer --bf16 --micro-batch-size 1 --global-batch-size 64
    --train-iters 100 --lr 3e-4 --mock-data --tokenizer-type NullTokenizer --vocab-size 32000
)
torchrun --nnodes 2 --nproc-per-node 8 pretrain_gpt.py "${ARGS[@]}"
"""

VALIDATE = "import sys; sys.argv[0] = 'shardwright'; from cli.start import run; run()"


def seconds(command: list[str]) -> float:
    """Return how long a process takes from its start to its end."""
    start = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - start


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="how often each is run")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="lines, or one JSON document")
    options = parser.parse_args()
    repeats: int = options.repeats
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "train.sh"
        script.write_text(SCRIPT, encoding="utf-8")
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import numpy'": [sys.executable, "-c", "import numpy"],
            "shardwright validate train.sh": [sys.executable, "-c", VALIDATE, "validate", str(script)],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(repeats + 1):
            for name, command in commands.items():
                times[name].append(seconds(command))
    # The first of each finds files that no cache holds yet.
    medians = {name: median(found[1:]) for name, found in times.items()}
    _, numpy, validate = medians.values()
    if options.format == "json":
        print(json.dumps({"median_seconds": medians, "validate_over_numpy": validate / numpy}, indent=2))
        return
    for name, value in medians.items():
        print(f"{name:<30}  {value * 1e3:6.0f} ms  {value / numpy:5.2f} x numpy")
    print(f"validate over numpy: {validate / numpy:.2f}")


if __name__ == "__main__":
    main()
