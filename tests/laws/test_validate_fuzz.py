"""Whatever is done to a file, `validate` judges or refuses it with a message: no traceback, no hang, nothing written.

Files of every kind that is read are damaged in seeded ways; each is judged and printed in one of the forms.
"""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType

import pytest

from cli.findings.forms import FindingsFormat, rendered
from cli.findings.github import summary
from planner.errors import InputError
from planner.validation.judge import Judged, judge
from planner.validation.sources import MAX_SCRIPT_BYTES, Asked
from tests.unit.rules.megatron_cases import script

CASES = 5000
BATCHES = 20
CPU_SECONDS = 10
"""Processor time after which a file is taken to hang; each is meant to take less than one."""

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
    ("train.sh", script()),
    ("experts.sh", script(num_experts="8", expert_model_parallel_size="4")),
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


class HangError(Exception):
    """A file took far longer than it should."""


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
    return random.randint(0, len(text))


def cut(text: str, random: Random) -> str:
    return text[: place(text, random)]


def without_a_piece(text: str, random: Random) -> str:
    start = place(text, random)
    return text[:start] + text[start + random.randint(1, 40) :]


def twice_a_piece(text: str, random: Random) -> str:
    start, at = place(text, random), place(text, random)
    return text[:at] + text[start : start + random.randint(1, 200)] * random.randint(1, 20) + text[at:]


def with_word(text: str, random: Random) -> str:
    at = place(text, random)
    before, behind = random.choice(" \n"), random.choice(" \n")
    return f"{text[:at]}{before}{random.choice(WORDS)}{behind}{text[at:]}"


def with_character(text: str, random: Random) -> str:
    at = place(text, random)
    return text[:at] + random.choice((*QUOTES, *CHARACTERS)) + text[at:]


def with_other_number(text: str, random: Random) -> str:
    digits = [index for index, character in enumerate(text) if character.isdigit()]
    if not digits:
        return text
    at = random.choice(digits)
    return text[:at] + random.choice(HUGE) + text[at + 1 :]


def nested(text: str, random: Random) -> str:
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
    name = random.choice(("ARGS", "TP", "A"))
    line = random.choice(
        (f"{name}=${name}${name}\n", f'{name}=("${{{name}[@]}}" "${{{name}[@]}}")\n', f"{name}+=${name}\n")
    )
    at = text.find("\n", place(text, random)) + 1
    return f"{text[:at]}{name}=--bf16\n{line * random.randint(1, 60)}{text[at:]}"


def lines_moved(text: str, random: Random) -> str:
    lines = text.split("\n")
    random.shuffle(lines)
    return "\n".join(lines)


DAMAGES = (
    cut, without_a_piece, twice_a_piece, with_word, with_word, with_character, with_character, with_other_number,
    with_other_number, nested, deep_value, doubled_variable, lines_moved,
)  # fmt: skip


@contextmanager
def no_hang() -> Iterator[None]:
    """Raise once this process has worked for too long; what others do on the machine does not count."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class Writes:
    """What this process opens for writing, starts or moves while it is watched."""

    CHANGES = frozenset(
        {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.system", "subprocess.Popen"}
    )

    def __init__(self) -> None:
        self.found: list[str] = []
        self.watching = False
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[object, ...]) -> None:
        """Note an event of the interpreter."""
        if not self.watching:
            return
        writes = event == "open" and isinstance(args[1], str) and bool(set(args[1]) & set("wax+"))
        # Python itself writes modules that it compiled.
        if event in self.CHANGES or (writes and "__pycache__" not in str(args[0])):
            self.found.append(f"{event} {args[0]!r}")


WRITES = Writes()
"""There is one, because hooks are never taken off."""


def judged(path: Path, *, from_folder: bool) -> Judged | None:
    """Return what is wrong with a file; None where it is refused with a message."""
    try:
        return judge([str(path.parent if from_folder else path)], Asked(versions={}, num_gpus=16))
    except InputError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_damaged_files_are_judged_or_refused(tmp_path: Path, batch: int) -> None:
    forms = list(FindingsFormat)
    refused = 0
    for case in range(batch * CASES // BATCHES, (batch + 1) * CASES // BATCHES):
        random = Random(case)
        name, text = SOURCES[case % len(SOURCES)]
        path = tmp_path / name
        path.write_bytes(damaged(text, random))
        WRITES.found.clear()
        WRITES.watching = True
        try:
            with no_hang():
                found = judged(path, from_folder=case % 50 == 0)
                if found is not None:
                    printed = rendered(found, forms[case % len(forms)])
                    printed.encode()
                    summary(found).encode()
        except Exception as error:
            error.add_note(f"case {case}: {path.read_bytes()[:2000]!r}")
            raise
        finally:
            WRITES.watching = False
        assert WRITES.found == [], case
        refused += found is None
        path.unlink()
    assert 0 < refused < CASES // BATCHES


LAUNCH = "torchrun --nproc-per-node 8 pretrain_gpt.py "
LARGE: Mapping[str, Callable[[int], str]] = {
    "unknown flags": lambda size: LAUNCH + " ".join(f"--tensor-mod{number}" for number in range(size // 18)),
    "unknown flags of vLLM": lambda size: "vllm serve m " + " ".join(f"--tensor-m{n}" for n in range(size // 18)),
    "one long number": lambda size: f"{LAUNCH}--num-layers {'9' * (size - 100)}",
    "one long text": lambda size: f'{LAUNCH}--data-path "{"a" * (size - 100)}"',
    "escapes": lambda size: LAUNCH + "\\a" * (size // 3),
    "references": lambda size: f"A=x\n{LAUNCH}{'$A ' * (size // 4)}",
    "a word of references": lambda size: f"A=x\n{LAUNCH}{'$A' * (size // 3)}",
    "commands": lambda size: f"{LAUNCH}\n" * (size // 50),
    "words of an array": lambda size: "A+=(--bf16)\n" * (size // 13) + LAUNCH,
    "pieces of a text": lambda size: "A+=a\n" * (size // 6) + LAUNCH,
    "comments": lambda size: "# shardwright: ignore[MLM101] x\n" * (size // 34) + LAUNCH,
    "open here-documents": lambda size: "cat " + "<<A " * (size // 5),
}
"""Scripts of nearly the largest size that is read, of one thing over and over."""


@pytest.mark.parametrize("what", LARGE)
def test_large_files_do_not_hang(tmp_path: Path, what: str) -> None:
    text = LARGE[what](MAX_SCRIPT_BYTES)
    assert MAX_SCRIPT_BYTES * 0.6 < len(text) <= MAX_SCRIPT_BYTES
    path = tmp_path / "train.sh"
    path.write_text(text)
    with no_hang():
        found = judged(path, from_folder=False)
        if found is not None:
            for form in FindingsFormat:
                rendered(found, form)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.sh"
    path.write_text(script() + "#" * MAX_SCRIPT_BYTES)
    with pytest.raises(InputError, match="The file is larger than 64 KiB"):
        judge([str(path)], Asked(versions={}))


@pytest.mark.parametrize("line", ["A=$A$A", 'A=("${A[@]}" "${A[@]}")', "A+=$A"])
def test_variables_that_double_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "train.sh"
    path.write_text("A=--bf16\n" + f"{line}\n" * 60 + script())
    with no_hang(), pytest.raises(InputError, match="The references of the script stand for more than 1,048,576"):
        judge([str(path)], Asked(versions={}))


def test_the_watch_sees_writes(tmp_path: Path) -> None:
    WRITES.found.clear()
    WRITES.watching = True
    try:
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "file").write_text("x")
    finally:
        WRITES.watching = False
    assert [event.split()[0] for event in WRITES.found] == ["os.mkdir", "open"]


def work_on() -> None:
    """Work until somebody stops it."""
    with no_hang():
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.01)
        while True:
            pass


def test_the_hang_guard_rings() -> None:
    with pytest.raises(HangError):
        work_on()
