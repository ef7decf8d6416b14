"""Checks of serving plans: predictions against published runs, the seven cases, what vLLM takes, a long trace."""

from benchmarks.checks.accuracy import figure, file_rows, summary, words_of
from benchmarks.checks.check import Answer, Check, Command, Measure, Suite, tests_in
from benchmarks.checks.targets import Target, above, at_least, at_most, exactly
from benchmarks.serving import OTHERS, SPECS, WANTED_SECONDS
from benchmarks.serving_trace import NAME as TRACE
from benchmarks.serving_trace import REQUESTS
from benchmarks.serving_trace import WANTED_SECONDS as WANTED_TRACE_SECONDS

FILE = "serving/serving_measurements.csv"
MIXED = "deepseek-v3-32xh200"
INFEASIBLE = "llama-3.1-70b-infeasible"
MLPERF = "MLPerf"
"""How the mode of its rows begins; they state no layout, and do not count for coverage."""


def coverage(answer: Answer) -> float | None:
    """Return the part of the rows but MLPerf's that were predicted, in percent."""
    errors = [
        found["error"]
        for row, found in zip(file_rows(answer, FILE), answer.document["rows"], strict=True)
        if not row["mode"].startswith(MLPERF)
    ]
    return 100 * errors.count(None) / len(errors) if errors else None


def refused(answer: Answer) -> float:
    """Return the part of the rows, all of which ran, that are called out of memory, in percent."""
    return float(100 * len(answer.document["summary"]["refused"]) / answer.document["summary"]["rows"])


def beyond_counting(order: str) -> Measure:
    """Return how much better pairs of unequal GPU counts are ordered than counting GPUs orders the same pairs."""

    def read(answer: Answer) -> float:
        found = answer.document["summary"]["ranking"][order]
        return float(100 * (found["right"] - found["by_gpus"]))

    name = {"unequal_tpot": "TPOT", "unequal_throughput": "tokens/s/GPU"}[order]
    return Measure(name=f"order of {name} beyond counting GPUs", target=above(0, "%"), read=read)


def without(column: str, most: float) -> Check:
    """Return the check of predictions by constants that were fitted without a model, or without a GPU."""

    def worst(answer: Answer) -> float:
        found = [group["tpot"]["rows_alike"] for group in answer.document["refit_without"]["groups"]]
        return float(max(100 * errors["median_absolute"] for errors in found if errors is not None))

    return Check(
        area="serving",
        name=f"{column}-left-out",
        about=f"time per token, by constants that were fitted without each {column}",
        run=Command(
            words=words_of(FILE, options=("--refit-without", column)),
            measures=(
                figure(
                    "TPOT, median error",
                    at_most(most, "%"),
                    *("refit_without", "all", "tpot", "rows_alike", "median_absolute"),
                ),
                Measure(name=f"TPOT, median error of the worst {column}", target=at_most(most, "%"), read=worst),
            ),
        ),
    )


def errors(name: str, most: float, rows: str, metric: str, statistic: str = "median_absolute") -> Measure:
    """Return the measure of an error, rows alike."""
    return summary(name, at_most(most, "%"), rows, metric, "rows_alike", statistic)


def case(name: str) -> Check:
    """Return the check of one of the seven cases."""
    solved = Measure(
        name="solve time", target=at_most(WANTED_SECONDS, "s"), read=lambda answer: answer.document[0]["seconds"]
    )
    kept = Measure(
        name="simulated mean over its target",
        target=at_most(1),
        read=lambda answer: answer.document[0]["over_targets"],
    )
    better = Measure(
        name="plan over the best equal engines",
        target=at_least(1),
        read=lambda answer: answer.document[0]["tokens_per_second_per_gpu"] / answer.document[0]["one_shape"],
    )
    more = () if name == INFEASIBLE else (kept, better) if name == MIXED else (kept,)
    return Check(
        area="serving",
        name=name,
        about="planned in time; by simulation the plan keeps its targets",
        run=Command(words=("-m", "benchmarks.serving", "--only", name, "--format", "json"), measures=(solved, *more)),
    )


def ranking(name: str, target: Target, order: str, key: str) -> Measure:
    """Return a figure of the order of layouts."""
    return summary(name, target, "ranking", order, key)


CHECKS = (
    Check(
        area="serving",
        name="accuracy",
        about="published serving runs are predicted and ranked; what ran is not called out of memory",
        run=Command(
            words=words_of(FILE),
            measures=(
                errors("TPOT, median error", 6, "clean", "tpot"),
                errors("TPOT, mean error", 10, "clean", "tpot", "mean_absolute"),
                errors("TTFT of dense models, median error", 18, "first token dense", "ttft"),
                errors("TTFT of experts, median error", 28, "first token experts", "ttft"),
                errors("printed throughput, median error", 9, "clean", "total"),
                ranking("order of TPOT, unequal GPUs", above(97.0, "%"), "unequal_tpot", "right"),
                beyond_counting("unequal_tpot"),
                ranking("order of tokens/s/GPU, unequal GPUs", above(98.4, "%"), "unequal_throughput", "right"),
                beyond_counting("unequal_throughput"),
                Measure(
                    name="pairs of equal GPUs reported",
                    target=above(0),
                    read=lambda answer: int(answer.document["summary"]["ranking"]["equal_tpot"]["pairs"]),
                ),
                summary("regret of the top choice", at_most(1.2, "%"), "ranking", "regret"),
                Measure(name="coverage without MLPerf", target=at_least(95, "%"), read=coverage),
                Measure(name="ran, called out of memory", target=at_most(0.3, "%"), read=refused),
            ),
        ),
    ),
    without("model", 15),
    without("hardware", 11),
    Check(
        area="serving",
        name="scores",
        about="what is left out of the scores is printed with them, repeats count once, guessed tokens apart",
        run=Suite(
            nodes=(
                "tests/unit/cli/test_accuracy_command.py::test_serving_runs_are_scored_and_what_is_left_out_is_said",
                "tests/unit/planner/accuracy/test_serving.py",
            )
        ),
    ),
    Check(
        area="serving",
        name="cannot-fit",
        about="20 layouts that cannot fit are called so",
        run=Suite(nodes=("tests/unit/planner/serving/test_ledger.py::test_weights_larger_than_the_memory_do_not_fit",)),
    ),
    *(case(name) for name in OTHERS),
    Check(
        area="serving",
        name="differences-explained",
        about="the benchmark prints both planners' figures and takes each difference apart",
        run=Suite(nodes=("tests/unit/benchmarks/test_serving.py",)),
    ),
    Check(
        area="serving",
        name="mixed-shapes",
        about="no way to compose bears more than the plan, whichever shapes it mixes",
        run=Suite(
            nodes=tests_in(
                "tests/unit/planner/serving_search/test_serving_plan.py",
                "test_every_way_to_compose_bears_no_more_than_the_plan",
                "test_a_composition_is_the_best_of_all",
                "test_both_programmes_compose_alike",
            )
        ),
    ),
    Check(
        area="serving",
        name="vllm-parses",
        about="vLLM's own parser takes the emitted commands",
        run=Suite(
            nodes=("tests/frameworks/test_vllm_emitted.py", "tests/frameworks/test_vllm_bench.py"), marker="frameworks"
        ),
    ),
    Check(
        area="serving",
        name="emitted-batch",
        about="the emitted --max-num-seqs is the planned batch",
        run=Suite(nodes=("tests/unit/planner/serving_search/test_serving_plan.py::test_files_say_the_plan",)),
    ),
    Check(
        area="serving",
        name="impossible-targets",
        about="targets that nothing keeps end with exit code 3 and the nearest plan",
        run=Command(
            words=("-m", "cli.start", "plan", str(SPECS / f"{INFEASIBLE}.yaml"), "--format", "json"),
            exits=(0, 3),
            measures=(
                Measure(name="exit code", target=exactly(3), read=lambda answer: answer.exit_code),
                Measure(
                    name="a nearest plan is named",
                    target=exactly(1),
                    read=lambda answer: float(bool(answer.document["infeasible"]["nearest"])),
                ),
                Measure(
                    name="targets that must move, with how far",
                    target=at_least(1),
                    read=lambda answer: sum(
                        move["together"] > move["given"] for move in answer.document["infeasible"]["moves"]
                    ),
                ),
            ),
        ),
    ),
    Check(
        area="serving",
        name=TRACE,
        about=f"a trace of {REQUESTS:,} requests is simulated in time",
        run=Command(
            words=("-m", "benchmarks.serving", "--only", TRACE, "--format", "json"),
            measures=(
                Measure(
                    name="requests",
                    target=exactly(REQUESTS),
                    read=lambda answer: int(answer.document[0]["num_requests"]),
                ),
                Measure(
                    name="processor time of the simulation",
                    target=at_most(WANTED_TRACE_SECONDS, "s"),
                    read=lambda answer: float(answer.document[0]["simulated_seconds"]),
                ),
            ),
        ),
    ),
)
