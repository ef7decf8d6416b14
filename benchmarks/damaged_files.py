"""What `shardwright validate` does with damaged files: how long the slowest of them takes.

`python -m benchmarks.damaged_files [--format json]` damages files of every kind that is read in seeded ways, judges
each and prints what is found in one of the forms. It says the processor seconds of the slowest, beside those of the
same file undamaged, and ends with 1 if one takes more than a second.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import process_time

from benchmarks.startup import SCRIPT
from cli.findings.forms import FindingsFormat, rendered
from cli.findings.github import summary
from planner.errors import InputError
from planner.validation.judge import judge
from planner.validation.source import Asked

CASES = 5000
MOST_SECONDS = 1.0
"""Processor time that no file may take."""

CONTINUED = (
    '#!/bin/bash\n#SBATCH --nodes=4\n#SBATCH --gpus-per-node=8\nTP=${TP:-2}\nOPTIONS="--bf16 --lr 3e-4"\n'
    "cat <<EOF > log\nnot $(a command\nEOF\nif [ -n \"$X\" ]; then\n  echo 'in it'\nfi\n"
    "srun torchrun --nnodes $SLURM_NNODES --nproc_per_node=8 \\\n    pretrain_gpt.py $OPTIONS \\\n"
    "    --tensor-model-parallel-size $TP --num-layers 16 --hidden-size=1024 --num-attention-heads 16 \\\n"
    "    --seq-length 1024 --max-position-embeddings 1024 --micro-batch-size 1 --data-path 0.3 'a b' 0.7 \"c\" \\\n"
    "    --train-iters 10 # shardwright: ignore[MLM101] a reason\n"
)
DEEPSPEED = (
    '{\n  "train_batch_size": 64,\n  "train_micro_batch_size_per_gpu": 1,\n  "gradient_accumulation_steps": 4,\n'
    '  "bf16": {"enabled": true},\n  "zero_optimization": {\n    "stage": 3,\n    "overlap_comm": true,\n'
    '    "reduce_bucket_size": 5e8,\n    "offload_optimizer": {"device": "cpu", "pin_memory": true}\n  },\n'
    '  "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.9, 0.95]}},\n  "gradient_clipping": 1.0\n}\n'
)
DEEPSPEED_LINE = "export A=1\ndeepspeed --num_nodes 2 --num_gpus 8 train.py --deepspeed ds.json --model x\n"
VLLM_LINE = (
    "#!/bin/sh\nvllm serve org/model --tensor-parallel-size 8 --pipeline-parallel-size=2 --max-model-len 8192 \\\n"
    "  --gpu-memory-utilization 0.9 --kv-cache-dtype fp8 --enable-expert-parallel --quantization awq\n"
)
VLLM_YAML = "model: org/model\ntensor-parallel-size: 8\nmax-model-len: 8192\ngpu-memory-utilization: 0.9\nport: 8000\n"
SPEC = (
    "schema: 1\nmodel: llama-3.1-8b\ncluster: {preset: dgx-h100, nodes: 2}\nworkload:\n  kind: train\n"
    "  seq_len: 8192\n  global_batch_size: 128\n  precision: bf16\nconstraints: {tp: 8, pp: [1, 2]}\n"
)
MEGATRON_YAML = "tensor_model_parallel_size: 2\nnum_layers: 32\nhidden_size: 4096\nbf16: true\nlr: 3.0e-4\n"

SOURCES: Sequence[tuple[str, str]] = (
    ("train.sh", SCRIPT),
    ("experts.sh", SCRIPT.replace("--bf16", "--bf16 --num-experts 8 --expert-model-parallel-size 4")),
    ("job.sbatch", CONTINUED),
    ("ds.json", DEEPSPEED),
    ("ds.sh", DEEPSPEED_LINE),
    ("serve.sh", VLLM_LINE),
    ("serve.yaml", VLLM_YAML),
    ("spec.yaml", SPEC),
    ("args.yaml", MEGATRON_YAML),
)

HUGE = ("9" * 30, "9" * 5000, "-1", "0", "1e999", "1e-999", "NaN", "0x10", "1_0", "٣", "³", "1" + "0" * 17, ".", "--")
QUOTES = ("'", '"', "`", "$(", "${", "$((", "\\", "<<EOF\n", "(", ")", "{", "}", "[", "]", "#", "$'", '$"', ";;", "|&")
CHARACTERS = (
    "\x00", "\x1b[31m", "\u202e", "\ufeff", "\u2028", "\x85", "\r", "\x0c", "é", "模型", "\U0001f600", "\ud800",
)  # fmt: skip
WORDS = (
    "${TP:-}", "${TP:-$TP}", "$TP", "$@", "${A[@]}", "A+=(x)", "A=($A $A)", "A=$A$A", "TP=--bf16", "export", "unset A",
    "--", "-", "--=", "--tensor-model-parallel-size", "--tensor-model-parallel-size=", "--num-layers=-1", "-5", "=",
    "&a [*a, *a]", "*a", "<<: {}", "!!python/object:x", "? [", "- -", "key: : value", "---", "...", "%YAML 9", "\t",
    "--config x.yaml", "--config=/dev/zero", "--config /dev/stdin", "--config .", "-O3", "--hf-overrides.a.b=1",
    "--num-attention-heads 99999999999999999", "--num-attention-heads 1000000007", "--max-model-len 9e9k",
    "--tensor-model-parallel-size 0", "--num-layers -7", "--lr nan", "--gpu-memory-utilization inf",
    "VLLM_PP_LAYER_PARTITION=1,2", "export VLLM_PP_LAYER_PARTITION=9,\u0663",
    "# shardwright: ignore[MLM101]", "# shardwright: ignore-file[,,] x", "// shardwright: ignore[S001", "null", "true",
)  # fmt: skip
MAX_REPEATS = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedFile:
    """A file to which something was done.

    Args:
        case: Its number, from which it can be made again.
        name: Name of the file.
        raw: Its bytes.
    """

    case: int
    name: str
    raw: bytes


def damaged_files(cases: Sequence[int]) -> Iterator[DamagedFile]:
    """Yield damaged files, the same for the same number."""
    for case in cases:
        name, text = SOURCES[case % len(SOURCES)]
        yield DamagedFile(case=case, name=name, raw=damaged(text, Random(case)))


def damaged(text: str, random: Random) -> bytes:
    """Return a text with one to three things done to it."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        text = random.choice(DAMAGES)(text, random)
    raw = text.encode("utf-8", errors="surrogatepass")
    return flipped(raw, random) if random.random() < 0.2 else raw


def flipped(raw: bytes, random: Random) -> bytes:
    """Return bytes of which a few have another value."""
    changed = bytearray(raw)
    for _ in range(random.randint(1, 8) if changed else 0):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def place(text: str, random: Random) -> int:
    """Return an index into a text, its end included."""
    return random.randint(0, len(text))


def cut(text: str, random: Random) -> str:
    """Return the beginning of a text."""
    return text[: place(text, random)]


def without_a_piece(text: str, random: Random) -> str:
    """Return a text that lacks a piece."""
    start = place(text, random)
    return text[:start] + text[start + random.randint(1, 40) :]


def twice_a_piece(text: str, random: Random) -> str:
    """Return a text with copies of a piece of it."""
    start, at = place(text, random), place(text, random)
    return text[:at] + text[start : start + random.randint(1, 200)] * random.randint(1, 20) + text[at:]


def with_word(text: str, random: Random) -> str:
    """Return a text with one of the words put in."""
    at = place(text, random)
    before, behind = random.choice(" \n"), random.choice(" \n")
    return f"{text[:at]}{before}{random.choice(WORDS)}{behind}{text[at:]}"


def with_character(text: str, random: Random) -> str:
    """Return a text with a quote or an uncommon character put in."""
    at = place(text, random)
    return text[:at] + random.choice((*QUOTES, *CHARACTERS)) + text[at:]


def with_other_number(text: str, random: Random) -> str:
    """Return a text of which a digit is another number."""
    digits = [index for index, character in enumerate(text) if character.isdigit()]
    if not digits:
        return text
    at = random.choice(digits)
    return text[:at] + random.choice(HUGE) + text[at + 1 :]


def nested(text: str, random: Random) -> str:
    """Return a text in which something is opened many times."""
    at = place(text, random)
    opening = random.choice((*QUOTES, "[", '{"a":', "- ", "a: ", "A=(", "$(", "if ", "((", '"$(', "--x "))
    return text[:at] + opening * random.randint(50, MAX_REPEATS) + text[at:]


def deep_value(text: str, random: Random) -> str:
    """Put a value that is nested deeply behind a flag."""
    at = place(text, random)
    name = random.choice(("--compilation-config=", "--hf-overrides ", "--a.b=", "--hf-overrides.c ", "a: ", '"a": '))
    number = random.randint(50, MAX_REPEATS)
    value = random.choice(("[", '{"a":', "{a: ", "'[" * 2, ".a", "9", "- ")) * number
    return f"{text[:at]} {name}{value}{' ' if random.random() < 0.5 else ''}{text[at:]}"


def doubled_variable(text: str, random: Random) -> str:
    """Return a text in which a variable is put into itself."""
    name = random.choice(("ARGS", "TP", "A"))
    line = random.choice(
        (f"{name}=${name}${name}\n", f'{name}=("${{{name}[@]}}" "${{{name}[@]}}")\n', f"{name}+=${name}\n")
    )
    at = text.find("\n", place(text, random)) + 1
    return f"{text[:at]}{name}=--bf16\n{line * random.randint(1, 60)}{text[at:]}"


def lines_moved(text: str, random: Random) -> str:
    """Return the lines of a text in another order."""
    lines = text.split("\n")
    random.shuffle(lines)
    return "\n".join(lines)


DAMAGES = (
    cut, without_a_piece, twice_a_piece, with_word, with_word, with_character, with_character, with_other_number,
    with_other_number, nested, deep_value, doubled_variable, lines_moved,
)  # fmt: skip


def judged_and_printed(path: Path, *, form: FindingsFormat, from_folder: bool = False) -> bool:
    """Judge a file and write what was found in a form; return False where it is refused with a message."""
    try:
        found = judge([str(path.parent if from_folder else path)], Asked(versions={}, num_gpus=16))
    except InputError:
        return False
    rendered(found, form).encode()
    summary(found).encode()
    return True


def seconds(path: Path, raw: bytes, *, case: int) -> float:
    """Return the processor time that a file takes."""
    path.write_bytes(raw)
    start = process_time()
    judged_and_printed(path, form=form_of(case))
    taken = process_time() - start
    path.unlink()
    return taken


def form_of(case: int) -> FindingsFormat:
    """Return the form that the findings of a file are written in."""
    forms = tuple(FindingsFormat)
    return forms[case % len(forms)]


def document_of(
    num_files: int, slowest: Sequence[tuple[float, DamagedFile]], plain: Mapping[str, float]
) -> dict[str, object]:
    """Return the slowest files as JSON.

    Args:
        num_files: How many were damaged.
        slowest: The slowest of them with their processor seconds.
        plain: Processor seconds of each undamaged file.
    """
    return {
        "files": num_files,
        "slowest": [
            {
                "case": file.case,
                "name": file.name,
                "bytes": len(file.raw),
                "cpu_seconds": value,
                "undamaged_cpu_seconds": plain[file.name],
            }
            for value, file in slowest
        ],
    }


def main() -> None:
    """Print the slowest files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=CASES, help="how many files are damaged")
    parser.add_argument("--slowest", type=int, default=5, help="how many of them are printed")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="lines, or one JSON document")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        # The first time loads what every later file finds there; the second counts.
        plain = {
            name: [seconds(Path(folder) / name, text.encode(), case=0) for _ in range(2)][-1] for name, text in SOURCES
        }
        taken = [
            (seconds(Path(folder) / file.name, file.raw, case=file.case), file)
            for file in damaged_files(range(options.cases))
        ]
    slowest = sorted(taken, key=lambda one: (-one[0], one[1].case))[: options.slowest]
    if options.format == "json":
        print(json.dumps(document_of(len(taken), slowest, plain), indent=2))
        sys.exit(any(value > MOST_SECONDS for value, _ in slowest))
    for value, file in slowest:
        print(
            f"case {file.case:>4}  {file.name:<10} {len(file.raw):>6,} bytes  {value * 1e3:7.1f} ms,"
            f" undamaged {plain[file.name] * 1e3:5.1f} ms"
        )
    print(f"{len(taken):,} files in {sum(value for value, _ in taken):.1f} processor seconds")
    sys.exit(any(value > MOST_SECONDS for value, _ in slowest))


if __name__ == "__main__":
    main()
