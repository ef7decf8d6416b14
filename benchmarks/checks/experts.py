"""Checks of expert placement and of offload: beside the two-level greedy, exhaustive search and FlexGen's formulas."""

from collections.abc import Callable

from benchmarks.checks.check import Answer, Check, Command, Measure, Suite
from benchmarks.checks.planning import example, words_of
from benchmarks.checks.targets import Target, at_least, at_most, exactly
from benchmarks.experts import DISTRIBUTIONS, MOST_SECONDS, SHAPES, Shape
from benchmarks.offload import CASES, Case

LEVEL = {"58x256-32": 1.05, "58x256-64": 1.55}
"""What Zipf 1.0 may load the heaviest GPU with, over the mean, where groups may cross nodes."""

LOAD_DECIMALS = 9
"""Equal loads differ by rounding of floats alone."""


def worst(value: Callable[[dict[str, float]], float]) -> Callable[[Answer], float]:
    """Return what reads the largest value over the rows of the benchmark."""
    return lambda answer: float(max(value(row) for row in answer.document))


def free_zipf(answer: Answer) -> float:
    """Return the load of Zipf 1.0 with groups free to cross nodes."""
    (row,) = (row for row in answer.document if row["distribution"] == "zipf:1.0" and not row["keep_groups"])
    return float(row["load"])


def placed(shape: Shape) -> Check:
    """Return the check of one shape: every distribution, groups kept and free."""
    level = LEVEL.get(shape.name)
    return Check(
        area="experts",
        name=f"placement-{shape.name}",
        about=f"{shape.layers} layers of {shape.experts} experts on {shape.gpus} GPUs, beside the two-level greedy",
        run=Command(
            words=("-m", "benchmarks.experts", "--only", shape.name, "--format", "json"),
            exits=(0, 1),
            measures=(
                Measure(
                    name="cases with the traffic of both",
                    target=exactly(2 * len(DISTRIBUTIONS)),
                    read=lambda answer: sum(row["sends"] > 0 and row["greedy_sends"] > 0 for row in answer.document),
                ),
                Measure(
                    name="worst load over the greedy's",
                    target=at_most(1, decimals=LOAD_DECIMALS),
                    read=worst(lambda row: row["load"] / row["greedy_load"]),
                ),
                *(
                    ()
                    if level is None
                    else (Measure(name="load of free Zipf 1.0", target=at_most(level), read=free_zipf),)
                ),
                Measure(
                    name="GPUs with an expert twice",
                    target=exactly(0),
                    read=lambda answer: sum(row["twice"] for row in answer.document),
                ),
                Measure(
                    name="processor time of all layers",
                    target=at_most(MOST_SECONDS, "s"),
                    read=worst(lambda row: row["cpu_seconds"]),
                ),
            ),
        ),
    )


def flexgen(case: Case) -> Check:
    """Return the check of one model under FlexGen's formulas; its figures are known to two decimals."""
    target: Target = at_least(case.wanted, "tokens/s", decimals=2)
    return Check(
        area="offload",
        name=f"flexgen-{case.model}",
        about=f"{case.model} with {case.gpu} GB of GPU memory and {case.host} GB of host memory, by FlexGen's formulas",
        run=Command(
            words=("-m", "benchmarks.offload", "--only", case.model, "--format", "json"),
            exits=(0, 1),
            measures=(
                Measure(name="generated", target=target, read=lambda answer: float(answer.document[0]["flexgen"])),
            ),
        ),
    )


def trains_or_says_what_is_missing(answer: Answer) -> float:
    """Return 1 where the plan offloads something and fits both memories, or a shortfall is named; else 0."""
    document = answer.document
    if not document["plans"]:
        return float(document["infeasible"]["shortfall_bytes"] > 0 and bool(document["infeasible"]["binding"]))
    best = document["plans"][0]
    return float(best["layout"]["offload"] is not None and best["peak_memory_bytes"] <= best["memory_limit_bytes"])


def trained(host_ram: str, target: str) -> Check:
    """Return the check of 70B on 8 GPUs of 40 GB with some host memory."""
    sets = ("cluster.preset=dgx-a100-40", "cluster.nodes=1", f"cluster.host_ram={host_ram}")
    return Check(
        area="offload",
        name=f"70b-on-8x40gb-{host_ram.lower()}-{target}",
        about=f"70B on 8 GPUs of 40 GB with {host_ram} of host memory trains with {target}, or what is missing is said",
        run=Command(
            words=words_of(example("llama-3.1-70b-8xdgx-a100"), (*sets, f"target={target}")),
            exits=(0, 3),
            measures=(
                Measure(name="trains, or says what is missing", target=exactly(1), read=trains_or_says_what_is_missing),
            ),
        ),
    )


CHECKS = (
    *(placed(shape) for shape in SHAPES),
    Check(
        area="experts",
        name="front",
        about="nothing on the front of load and traffic is better in both than another point of it",
        run=Suite(nodes=("tests/unit/planner/experts/test_decide.py",)),
    ),
    Check(
        area="experts",
        name="exhaustive",
        about="up to 16 experts on 4 GPUs are placed as well as by looking at every placement",
        run=Suite(nodes=("tests/agreement/test_replicas.py", "tests/agreement/test_followers.py")),
    ),
    *(flexgen(case) for case in CASES),
    *(trained(host_ram, target) for host_ram in ("512GB", "2TB") for target in ("megatron", "deepspeed")),
    Check(
        area="offload",
        name="deepspeed-steps",
        about="with the keys that offload, a toy model takes the real steps of DeepSpeed on CPUs",
        run=Suite(nodes=("tests/frameworks/test_deepspeed_offload.py",), marker="frameworks"),
    ),
)
