"""Checks of the search: speed and proof; beside exhaustive search, MIPs, random layouts and published schedules."""

from benchmarks.checks.check import Answer, Check, Command, Measure, Suite, tests_in
from benchmarks.checks.targets import at_most, exactly
from benchmarks.instances import WANTED, WANTED_PEAK_RSS_BYTES
from benchmarks.random_layouts import CLUSTERS
from planner.models.bundled import model_names

SMALL = "llama-3.2-1b-4xa100"
"""The instance small enough for every layout to be looked at."""

GAP_DECIMALS = 9
"""In percent: what is left of a closed gap is rounding of floats."""


def gap_of(answer: Answer) -> float | None:
    """Return the gap between the plan and its bound, in percent; None without a plan."""
    (row,) = answer.document
    gap = row["solved"]["gap"]
    return None if gap is None else 100 * gap


def solved(name: str, seconds: float, gap: float) -> Check:
    """Return the check of one instance.

    Args:
        name: The instance's.
        seconds: What solving may take.
        gap: What the gap may be, as a part of one.
    """
    return Check(
        area="search",
        name=name,
        about="solved in time with its proof, in little memory; points are as many by an independent count",
        run=Command(
            words=("-m", "benchmarks.search", "--only", name, "--format", "json"),
            exits=(0, 1),
            measures=(
                Measure(
                    name="solve time",
                    target=at_most(seconds, "s"),
                    read=lambda answer: float(answer.document[0]["solved"]["seconds"]),
                ),
                Measure(name="gap", target=at_most(100 * gap, "%", decimals=GAP_DECIMALS), read=gap_of),
                Measure(
                    name="peak memory",
                    target=at_most(WANTED_PEAK_RSS_BYTES / 1e9, "GB"),
                    read=lambda answer: answer.document[0]["solved"]["peak_rss_bytes"] / 1e9,
                ),
                Measure(
                    name="legal points that the count has not",
                    target=exactly(0),
                    read=lambda answer: float(
                        answer.document[0]["solved"]["legal"]
                        + answer.document[0]["solved"]["too_long"]
                        - answer.document[0]["counted"]["legal"]
                    ),
                ),
                Measure(
                    name="disagreements",
                    target=exactly(0),
                    read=lambda answer: len(answer.document[0]["disagreements"]),
                ),
            ),
        ),
    )


def drawn(cluster: str) -> Check:
    """Return the check of random layouts, and those a move or two from the plan, on one cluster."""
    return Check(
        area="search",
        name=f"random-layouts-{cluster}",
        about="no random legal layout, nor one a move or two away, is better than a bundled model's plan; hours",
        run=Command(
            words=("-m", "benchmarks.random_layouts", "--cluster", cluster),
            exits=(0, 1),
            measures=(
                Measure(
                    name="models planned", target=exactly(len(model_names())), read=lambda answer: len(answer.lines)
                ),
                Measure(
                    name="better layouts",
                    target=exactly(0),
                    read=lambda answer: sum(len(case["better"]) for case in answer.lines),
                ),
            ),
        ),
    )


CHECKS = (
    *(solved(name, wanted.seconds, wanted.gap or 0.0) for name, wanted in WANTED.items()),
    Check(
        area="search",
        name="brute-force",
        about="where every layout can be looked at, the best of them is the plan",
        run=Command(
            words=("-m", "benchmarks.search", "--only", SMALL, "--format", "json"),
            exits=(0, 1),
            measures=(
                Measure(
                    name="plan over the best of all layouts",
                    target=at_most(1, decimals=GAP_DECIMALS),
                    read=lambda answer: float(
                        answer.document[0]["solved"]["step_seconds"] / answer.document[0]["exhausted"]["step_seconds"]
                    ),
                ),
                Measure(
                    name="disagreements",
                    target=exactly(0),
                    read=lambda answer: len(answer.document[0]["disagreements"]),
                ),
            ),
        ),
    ),
    Check(
        area="search",
        name="small-problems",
        about="500 random small problems: exhaustive search, the dynamic programme and both MIPs agree",
        run=Suite(nodes=("tests/agreement/test_chain_partition.py",)),
    ),
    Check(
        area="search",
        name="small-runs",
        about="hundreds of random small runs: exhaustive search with the simulator, programme and MIPs agree",
        run=Suite(nodes=("tests/agreement/test_plans.py",), marker="long or not long"),
    ),
    *(drawn(cluster) for cluster in CLUSTERS),
    Check(
        area="search",
        name="schedules",
        about="uniform schedules have their published bubbles; the memory-limited scheduler reaches those of its paper",
        run=Suite(nodes=("tests/published/test_schedules.py",)),
    ),
    Check(
        area="search",
        name="layout-by-hand",
        about="of Llama-3-70B at tp 4, pp 8, vpp 5 the layout found is as fast as the one made by hand",
        run=Suite(
            nodes=tests_in(
                "tests/unit/planner/search/splits/test_uneven.py",
                "test_the_layout_of_a_llama_70b_made_by_hand_is_beaten",
            )
        ),
    ),
    Check(
        area="search",
        name="unequal-nodes",
        about="one slow link, or a node of older GPUs, changes the plan as it should, and it beats the uniform one",
        run=Suite(nodes=("tests/unit/planner/search/splits/test_rank_map.py", "tests/agreement/test_node_orders.py")),
    ),
)
