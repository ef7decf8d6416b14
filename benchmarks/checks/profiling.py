"""Checks of the profiler: on a GPU where there is one, and all but its figures on CPUs and with recorded data."""

from benchmarks.checks.check import FOLDER, Answer, ByHand, Check, Command, Measure, Need, Suite, tests_in
from benchmarks.checks.targets import at_least, at_most

MEASURED = f"{FOLDER}/measured"
BUDGET = "8m"


def left_out(family: str, most: float) -> Measure:
    """Return the measure of a family's points, each predicted from the others."""
    return Measure(
        name=f"{family} left out, median error",
        target=at_most(most, "%"),
        read=lambda answer: 100 * float(answer.document["left_out"][family]["median"]),
    )


def worst_off(answer: Answer, key: str) -> float | None:
    """Return how far the sum of parts is off a whole layer at most, in percent."""
    offs = [layer[key] for layer in answer.document["layers"]]
    return None if None in offs else max((100 * abs(off) for off in offs), default=None)


CHECKS = (
    Check(
        area="profiling",
        name="gpu",
        about="eight minutes on a GPU cover layers of an 8B and a 70B; points left out and whole layers are predicted",
        run=Command(
            before=(
                *("-m", "cli.start", "profile", "run", "--model", "llama-3.1-8b", "--model", "llama-3.1-70b"),
                *("--device", "cuda", "--budget", BUDGET, "--quiet", "--out", MEASURED),
            ),
            words=("-m", "cli.start", "profile", "check", MEASURED, "--left-out", "--format", "json"),
            exits=(0, 1),
            measures=(
                Measure(
                    name="whole layers measured",
                    target=at_least(2),
                    read=lambda answer: len(answer.document["layers"]),
                ),
                left_out("matrix products", 4),
                left_out("attention", 6),
                Measure(
                    name="sum of parts, worst layer's time",
                    target=at_most(8, "%"),
                    read=lambda answer: worst_off(answer, "seconds_off"),
                ),
                Measure(
                    name="sum of parts, worst layer's peak",
                    target=at_most(5, "%"),
                    read=lambda answer: worst_off(answer, "bytes_off"),
                ),
            ),
            needs=(Need.GPU,),
        ),
    ),
    Check(
        area="profiling",
        name="gpu-training-step",
        about="a real training step of a small model is predicted after `calibrate`",
        run=ByHand(
            wanted=(("step time, error", at_most(8, "%")),),
            reason="needs a GPU with Megatron-LM or DeepSpeed: run an emitted script, then `shardwright calibrate` its"
            " log and plan again",
        ),
    ),
    Check(
        area="profiling",
        name="gpu-table",
        about="a table that the profiler measured on a GPU ships, with where it came from",
        run=ByHand(wanted=(("tables", at_least(1)),), reason="needs a GPU: no table that the profiler measured ships"),
    ),
    Check(
        area="profiling",
        name="two-processes",
        about="two processes under torchrun measure every suite on a CPU, and a plan uses what they measured",
        run=Suite(
            nodes=tests_in(
                "tests/frameworks/test_profile.py",
                "test_two_processes_measure_every_suite",
                "test_a_profile_of_two_processes_prices_a_plan",
            ),
            marker="frameworks",
        ),
    ),
    Check(
        area="profiling",
        name="doubled-products",
        about="measured products that take twice as long change the step time and its sources as they must",
        run=Suite(
            nodes=(
                "tests/unit/profiles/test_profiled.py::test_doubled_products_double_in_the_step_and_nothing_else_does",
            )
        ),
    ),
    Check(
        area="profiling",
        name="killed",
        about="killed at 20 random moments and resumed, the store holds every point once",
        run=Suite(
            nodes=tests_in(
                "tests/frameworks/test_profile.py",
                "test_killed_at_random_moments_the_collector_goes_on_and_loses_nothing",
            ),
            marker="frameworks",
        ),
    ),
    Check(
        area="profiling",
        name="planted-faults",
        about="the gate names each planted fault of a table, and nothing else",
        run=Suite(nodes=("tests/unit/profiles/test_sanity.py", "tests/unit/profiles/test_gates.py")),
    ),
    Check(
        area="profiling",
        name="importers",
        about="logs, tables and descriptions of clusters of several vendors are read in their real formats",
        run=Suite(nodes=("tests/unit/profiles/imports", "tests/unit/planner/imports")),
    ),
)
