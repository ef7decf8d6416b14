"""Code of the collector that only torch can run: what refuses a point is said, and a graph is long enough."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the collector measures with torch (extra: dev)")

from profiles.measure import job as jobs  # noqa: E402 - behind the check for torch
from profiles.measure import provenance, ranks, timing  # noqa: E402
from profiles.measure.points import Point, Wanted, point, request_text  # noqa: E402
from profiles.measure.ranks import Ranks  # noqa: E402
from profiles.measure.suites import attention, collectives, gemm, layer, memory  # noqa: E402
from profiles.measure.suites.context import Context  # noqa: E402
from profiles.measure.timing import Bench, Call, Effort, LostError, Machine, NotMeasurableError  # noqa: E402
from tests.frameworks.test_profile import ROOT, SECONDS_PER_RUN, environment  # noqa: E402

pytestmark = pytest.mark.frameworks
SEEN = {"batch": 1, "query_len": 16, "kv_len": 16, "window": 0, "qk_dim": 16, "v_dim": 16}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """Return a CPU of its own."""
    machine = Machine("cpu")
    alone = Ranks(machine, rank=0, world_size=1, per_node=1)
    return Context(bench=Bench(machine, Effort(seconds=0.001)), ranks=alone, scratch=tmp_path)


def seen(heads: int, kv_heads: int) -> Point:
    return point("attention", dtype="bf16", phase="forward", mask="causal", heads=heads, kv_heads=kv_heads, **SEEN)


def test_every_attention_kernel_that_refuses_says_why(context: Context) -> None:
    with pytest.raises(NotMeasurableError) as caught:
        attention.measure(seen(3, 2), context)
    told = str(caught.value).removeprefix("no attention kernel takes this shape here: ")
    reasons = dict(part.split(": ", 1) for part in told.split("; ") if ": " in part)
    assert set(attention.BACKENDS) <= set(reasons), told
    assert all(reasons[name] for name in attention.BACKENDS)


def test_a_kernel_that_was_taken_names_the_better_ones_that_were_not(context: Context) -> None:
    found = attention.measure(seen(2, 2), context)
    assert found["kernel"] == "flash"
    assert "refused" not in found
    values_wider = point(
        "attention", dtype="bf16", phase="forward", mask="causal", heads=2, kv_heads=2, **{**SEEN, "v_dim": 8}
    )
    other = attention.measure(values_wider, context)
    assert other["kernel"] != "flash"
    refused = other["refused"]
    assert isinstance(refused, dict)
    assert next(iter(refused)) == "flash"
    assert refused["flash"]


def test_a_product_without_its_kernel_says_why(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: dict[str, str] = {}
    # A CPU has no product of 16-bit operands that adds in fp32, or torch says so by an error.
    assert gemm._adds_in_fp32(torch.float32, torch.device("cpu"), refused) is False
    assert refused == {}

    def fail(*_: object) -> object:
        raise RuntimeError("no such kernel\nsecond line")

    monkeypatch.setattr(torch, "_int_mm", fail)
    entry = point("gemm", dtype="int8", part="forward", batch=1, m=32, n=32, k=32)
    with pytest.raises(NotMeasurableError, match=r"^this machine has no such kernel: no such kernel$"):
        gemm.measure(entry, context)


def test_a_kernel_that_another_torch_calls_otherwise_is_refused_and_not_the_end(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: object, **__: object) -> object:
        raise TypeError("_scaled_mm() got an unexpected keyword argument 'use_fast_accum'")

    monkeypatch.setattr(torch, "_scaled_mm", other)
    entry = point("gemm", dtype="fp8", part="forward", batch=1, m=32, n=32, k=32)
    with pytest.raises(NotMeasurableError, match=r"^this machine has no such kernel: _scaled_mm\(\) got an unexpected"):
        gemm.measure(entry, context)


@pytest.mark.parametrize(("sizes", "is_taken"), [((8, 32, 32), True), ((32, 8, 32), False), ((32, 32, 8), False)])
def test_products_in_fp8_may_have_few_rows(
    context: Context, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int], is_taken: bool
) -> None:
    def product(a: Any, b: Any, **_: object) -> object:
        assert (a.dtype, b.dtype) == (torch.float8_e4m3fn, torch.float8_e4m3fn)
        assert (a.stride(1), b.stride(0)) == (1, 1), "rows by rows"
        return torch.zeros(a.shape[0], b.shape[1], dtype=torch.bfloat16)

    monkeypatch.setattr(torch, "_scaled_mm", product)
    m, n, k = sizes
    entry = point("gemm", dtype="fp8", part="forward", batch=1, m=m, n=n, k=k)
    if is_taken:
        assert gemm.measure(entry, context)["kernel"] == "_scaled_mm"
        return
    with pytest.raises(NotMeasurableError, match=r"^products in fp8 need columns and inner dimensions that are "):
        gemm.measure(entry, context)


@pytest.mark.parametrize(
    ("dtype", "capability", "told"),
    [
        (torch.bfloat16, (9, 0), ""),
        (torch.bfloat16, (10, 0), ""),
        (torch.bfloat16, (8, 9), "before compute capability 9.0 it waits for the host, which no graph can hold"),
        (torch.float16, (9, 0), "it is for bf16"),
    ],
)
def test_experts_are_grouped_where_no_capture_fails_of_it(
    monkeypatch: pytest.MonkeyPatch, dtype: object, capability: tuple[int, int], told: str
) -> None:
    assert gemm.grouped_refusal(dtype, capability) == told
    monkeypatch.delattr(torch, "_grouped_mm", raising=False)
    assert gemm.grouped_refusal(torch.bfloat16, (9, 0)) == "this torch has none"


def test_experts_on_a_gpu_without_a_grouped_kernel_say_so(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    refused: dict[str, str] = {}
    assert not gemm._is_one_kernel(lambda: lambda: None, torch.bfloat16, context.device, refused)
    assert "before compute capability 9.0" in refused["_grouped_mm"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    refused = {}
    assert gemm._is_one_kernel(lambda: lambda: None, torch.bfloat16, context.device, refused)
    assert refused == {}


@pytest.mark.parametrize(("local_rank", "visible", "index"), [(0, 8, 0), (5, 8, 5), (5, 1, 0)])
def test_a_process_that_is_shown_its_own_gpu_alone_takes_that(local_rank: int, visible: int, index: int) -> None:
    assert ranks.gpu_index(local_rank, visible=visible) == index


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^process 5 of its node sees 4 GPUs: start no more processes of a node "):
        ranks.gpu_index(5, visible=4)


def test_a_second_process_that_fails_says_why(context: Context) -> None:
    seen_meanwhile: list[int] = []

    def meanwhile() -> int:
        seen_meanwhile.append(1)
        return 7

    told = memory._other_process("print(5, flush=True); input()", meanwhile)
    assert told == ("5", "", 7)
    failed = memory._other_process("raise SystemExit('CUDA error: exclusive')", meanwhile)
    assert failed == ("", "CUDA error: exclusive", 7)


def test_a_reason_of_some_ranks_names_the_first_of_them() -> None:
    fine = {"seconds": 1.0}
    assert jobs.joined([fine, "no memory", "no memory"]) == "rank 1: no memory"
    assert jobs.joined(["no memory", "no memory"]) == "no memory"
    assert jobs.joined(["no memory"]) == "no memory"
    assert jobs.joined([fine, {"seconds": 2.0}]) == {"seconds": 2.0, "ranks": 2, "fastest": 1.0}


class HostBoundBench(Bench):
    """Pretends to be a GPU on which a kernel takes 5 microseconds and its launch 100."""

    def __init__(self) -> None:
        self.graphs: list[int] = []

    def _warmed(self, _: Sequence[Call]) -> float:
        return 1e-4

    def _captured(self, _: Sequence[Call], inner: int, __: object) -> object:  # type: ignore[override]
        self.graphs.append(inner)

        class Graph:
            calls = inner

            def reset(self) -> None:
                """Give it up."""

        return Graph()

    def _replayed_seconds(self, graph: object) -> float:
        return 5e-6 * graph.calls  # type: ignore[attr-defined, no-any-return]


def test_a_graph_is_as_long_as_its_kernels_not_as_their_launches() -> None:
    bench = HostBoundBench()
    _, inner = bench._graph_of([lambda: None] * 3, None)
    assert bench.graphs == [42, 513]
    assert inner == 513
    assert inner % 3 == 0
    slow = HostBoundBench()
    slow._replayed_seconds = lambda graph: 1e-4 * graph.calls  # type: ignore[method-assign, attr-defined]
    _, inner = slow._graph_of([lambda: None], None)
    assert slow.graphs == [inner] == [40], "long enough at once"


def test_a_capture_that_fails_ends_the_process(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: Point, __: Context) -> object:
        raise LostError("it cannot be captured in a graph: no")

    job = jobs.TorchJob(context.ranks, effort=Effort(), scratch=context.scratch, called="")
    assert not job.is_lost()
    monkeypatch.setitem(job._suites, "attention", lost)
    assert job.measure(seen(2, 2)) == "it cannot be captured in a graph: no"
    assert job.is_lost()


def test_a_collective_whose_capture_fails_on_one_rank_ends_all(context: Context) -> None:
    def failing(error: Exception) -> Callable[[], object]:
        def work() -> object:
            raise error

        return work

    with pytest.raises(LostError, match=r"^torn$"):
        collectives.agreed(context, failing(LostError("torn")))
    with pytest.raises(NotMeasurableError, match=r"^refused$"):
        collectives.agreed(context, failing(RuntimeError("refused\nat length")))
    assert collectives.agreed(context, lambda: 3) == [3]


@pytest.mark.parametrize("error", [RuntimeError(""), RuntimeError("\n"), RuntimeError("x" * 999)])
def test_an_error_without_words_has_a_line_all_the_same(error: Exception) -> None:
    assert 0 < len(timing.first_line(error)) <= timing.LONGEST_LINE


def test_a_layer_gives_back_a_tensor_of_its_input(context: Context) -> None:
    sizes = {"batch": 2, "tokens": 8, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "intermediate": 48}
    entry = point("layer", dtype="bf16", phase="backward", **sizes)
    made = layer.Layer(entry, fuses=False).to(torch.bfloat16)
    x = torch.randn(2, 8, 32, dtype=torch.bfloat16, requires_grad=True)
    out = made(x)
    out.sum().backward()
    assert out.shape == x.shape
    assert all(parameter.grad is not None for parameter in made.parameters())
    # Queries see keys as far as their own: the last token changes no earlier one.
    changed = x.detach().clone()
    changed[:, -1] += 1
    assert torch.equal(made(changed)[:, :-1], out[:, :-1])


def test_under_torchrun_a_full_disk_ends_all_ranks(tmp_path: Path) -> None:
    points = [point("launch", term="launch", kernels=kernels) for kernels in range(1, 200)]
    (tmp_path / "request.jsonl").write_text(request_text([Wanted(point=entry) for entry in points]))
    words = f"--request {tmp_path}/request.jsonl --out {tmp_path}/out --device cpu --seconds 0.01 --progress none"
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=2"
    # Files may grow to 24 KiB, which is less than the points need, and than compiled modules that others read later.
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 24; exec {torchrun} -m profiles.measure {words}"],
        env={**environment(), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS_PER_RUN,
    )
    assert done.returncode != 0
    assert f"{tmp_path}/out/points.jsonl: nothing more can be written: File too large" in done.stderr
    assert (tmp_path / "out" / "points.jsonl").stat().st_size <= 24 << 10


NVIDIA_SMI = """\
#!/bin/bash
echo "$*" >> {calls}
case "$*" in
  *driver_version*) printf '570.1\\n570.1\\n' ;;
  *{refused}*) echo "Field is not a valid field to query." >&2; exit 2 ;;
  *) echo "1980, 2619, 1980, 41, 300.5, 700.00, 0x0000000000000000" ;;
esac
"""


@pytest.mark.parametrize(
    ("refused", "questions"),
    [("clocks_throttle", 1), ("clocks_event", 2), ("clocks.sm", 2)],
    ids=["new", "old", "none"],
)
def test_clocks_are_asked_of_new_and_old_drivers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, questions: int
) -> None:
    program, calls = tmp_path / "nvidia-smi", tmp_path / "calls"
    program.write_text(NVIDIA_SMI.format(calls=calls, refused=refused))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = provenance.conditions("0000:1b:00.0")
    asked = calls.read_text().splitlines()
    assert len(asked) == questions
    assert all(line.endswith("--id=0000:1b:00.0") for line in asked)
    if refused == "clocks.sm":
        assert list(found) == ["at", "unread"]
        assert found["unread"] == "nvidia-smi: Field is not a valid field to query."
    else:
        assert (found["sm_clock_mhz"], found["temperature_celsius"], found["power_watts"]) == (1980.0, 41.0, 300.5)
        assert found["slowed_by"] == "0x0000000000000000"
    assert provenance._driver() == "570.1"


def test_a_machine_without_nvidia_smi_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.conditions("0")["unread"] == "nvidia-smi is missing"
    assert provenance._driver() == ""
