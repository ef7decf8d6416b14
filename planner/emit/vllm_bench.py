"""The command that measures a serving plan at its load: `vllm bench serve` with the workload's lengths and arrivals.

Options are those of vLLM 0.32.0 (`vllm/benchmarks/serve.py`, `vllm/benchmarks/datasets/datasets.py`). Its random data
set draws lengths evenly from a range around a mean, and puts a shared beginning before each prompt. What it cannot draw
(a lognormal distribution, a trace) is run at the mean, and a comment says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.emit.shell import comment, quote
from planner.emit.vllm import PORT
from planner.serving_plans.request import Arrivals, Lengths, ServeWorkload

BENCH_FILE = "bench.sh"
NUM_WAVES = 10
"""Requests of a benchmark over those that are under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One address that a benchmark is sent to.

    Args:
        name: What is behind it.
        count: How many such addresses there are.
        requests_per_second: That each gets.
        concurrency: Requests under way at each.
        port: Where it listens, unless told otherwise.
    """

    name: str
    count: int
    requests_per_second: float
    concurrency: int
    port: int = PORT


def bench_script(model: str, workload: ServeWorkload, doors: Sequence[Door]) -> str:
    """Return a script that measures what the plan promises of each kind of address."""
    lines = [
        "#!/usr/bin/env bash",
        comment(f"Measures {model} at the load that was planned, one address at a time. Written by shardwright."),
        comment("Usage: POOL=name HOST=address bash bench.sh; PORT where it is another"),
    ]
    lines += [comment(note) for note in _notes(workload)]
    first = quote(doors[0].name, what="the name of a pool")
    lines += ["", "set -euo pipefail", "", f'case "${{POOL:-{first}}}" in']
    for door in doors:
        words = _load(workload, door)
        lines.append(f"    {quote(door.name, what='the name of a pool')}) LOAD=({' '.join(words)}) DOOR={door.port} ;;")
    lines += ['    *) echo "no such pool: $POOL" >&2; exit 2 ;;', "esac", ""]
    words = [*_lengths(workload), *_targets(workload)]
    lines.append("exec vllm bench serve \\")
    lines.append(f"    --model {quote(model, what='the model')} \\")
    lines.append('    --host "${HOST:-127.0.0.1}" --port "${PORT:-$DOOR}" \\')
    lines += [f"    {word} \\" for word in words]
    lines.append('    "${LOAD[@]}" "$@"')
    return "\n".join(lines) + "\n"


def _load(workload: ServeWorkload, door: Door) -> list[str]:
    count = max(200, NUM_WAVES * door.concurrency)
    if workload.num_requests is not None:
        count = min(count, workload.num_requests)
    if workload.arrivals in {Arrivals.CLOSED, Arrivals.OFFLINE}:
        return ["--max-concurrency", str(door.concurrency), "--num-prompts", str(count)]
    words = ["--request-rate", f"{door.requests_per_second:.4g}", "--num-prompts", str(count)]
    return words if workload.burstiness == 1.0 else [*words, "--burstiness", f"{workload.burstiness:g}"]


def _lengths(workload: ServeWorkload) -> list[str]:
    prompt, output = (
        _middle(workload.prompts, workload, prompts=True),
        _middle(workload.outputs, workload, prompts=False),
    )
    prefix = 0 if workload.prefix is None else workload.prefix.tokens
    words = [
        "--dataset-name random --ignore-eos",
        f"--random-input-len {prompt - prefix} --random-output-len {output}",
    ]
    if prefix:
        words.append(f"--random-prefix-len {prefix}")
    ratios = _ratio(workload.prompts, offset=prefix), _ratio(workload.outputs, offset=0)
    if any(ratios):
        words.append(f'--random-range-ratio \'{{"input": {ratios[0]:.4g}, "output": {ratios[1]:.4g}}}\'')
    return words


def _middle(lengths: Lengths | None, workload: ServeWorkload, *, prompts: bool) -> int:
    if lengths is None:
        assert workload.trace is not None
        listed = workload.trace.prompts_N if prompts else workload.trace.outputs_N
        return round(sum(listed) / len(listed))
    return round((lengths.shortest + lengths.longest) / 2 if lengths.mean is None else lengths.mean)


def _ratio(lengths: Lengths | None, *, offset: int) -> float:
    """Return half the width of a range of lengths, as a part of its middle."""
    if lengths is None or lengths.mean is not None:
        return 0.0
    low, high = lengths.shortest - offset, lengths.longest - offset
    return (high - low) / (high + low)


def _targets(workload: ServeWorkload) -> list[str]:
    names = {"ttft": "ttft", "tpot": "tpot", "e2e": "e2el"}
    given = workload.targets.given
    percentile = workload.targets.percentile
    asked = sorted({50.0, 90.0, 99.0, *((percentile,) if percentile is not None else ())})
    words = [
        "--percentile-metrics ttft,tpot,itl,e2el",
        f"--metric-percentiles {','.join(f'{value:g}' for value in asked)}",
    ]
    if given:
        pairs = " ".join(f"{names[name]}:{seconds * 1e3:g}" for name, seconds in given.items())
        words.append(f"--goodput {pairs}")
    return words


def _notes(workload: ServeWorkload) -> list[str]:
    notes = []
    if workload.trace is not None:
        notes.append(f"Lengths are the means of {workload.trace.file}: random prompts have no recorded lengths.")
    if workload.arrivals is Arrivals.TRACE:
        notes.append("Requests come at the trace's mean rate, independently: its bursts are not measured.")
    for name, lengths in (("input", workload.prompts), ("output", workload.outputs)):
        if lengths is not None and lengths.mean is not None:
            notes.append(f"The {name} has its mean length: random prompts have no lognormal lengths.")
    return notes
