"""Checks of `shardwright accuracy` against published measurements of training runs, kernels and collectives.

Medians are those that the command prints: sources, or systems, weigh the same. Of the peaks of two sources, and of the
kernels of one number format, it prints rows and no median, so these are taken here from its rows.
"""

import csv
from collections.abc import Callable, Iterator

from benchmarks.checks.check import MEASUREMENTS, Answer, Check, Command, Measure, Suite, seconds_at_most
from benchmarks.checks.targets import Target, at_least, at_most
from planner.accuracy.scores import errors_of

TRAINING = "training/training_measurements.csv"
STUDY = "training/aleph_alpha.csv"
BF16 = ("bfloat16",)
FP8 = ("fp8", "fp8_block")


def words_of(*files: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the command for files of the folder of measurements."""
    return ("-m", "cli.start", "accuracy", *(f"{MEASUREMENTS}/{file}" for file in files), *options, "--format", "json")


def figure(name: str, target: Target, *path: str) -> Measure:
    """Return a figure of the document, a part of one in percent where the target is."""

    def read(answer: Answer) -> float | None:
        found = answer.document
        for key in path:
            found = found[key]
        return None if found is None else (100.0 if target.unit == "%" else 1.0) * float(found)

    return Measure(name=name, target=target, read=read)


def summary(name: str, target: Target, *path: str) -> Measure:
    """Return a figure of the document's summary."""
    return figure(name, target, "summary", *path)


def peak_errors(answer: Answer, group: str) -> list[tuple[str, float, float]]:
    """Return the predicted and measured peaks of the runs of a source group that ran."""
    return [
        (group, row["predicted_allocated_bytes"], row["measured_peak_bytes"])
        for row in answer.document["rows"]
        if row["source_group"] == group
        and row["measured_fits"]
        and row["predicted_allocated_bytes"]
        and row["measured_peak_bytes"]
    ]


def median_peak(group: str) -> Callable[[Answer], float | None]:
    """Return what reads the median error of the peaks of a source group, in percent."""

    def read(answer: Answer) -> float | None:
        found = errors_of(peak_errors(answer, group))
        return None if found is None else 100 * found.median_absolute

    return read


def worst_peak(group: str) -> Callable[[Answer], float | None]:
    """Return what reads the largest error of the peaks of a source group, in percent."""

    def read(answer: Answer) -> float | None:
        return max(
            (100 * abs(predicted / measured - 1) for _, predicted, measured in peak_errors(answer, group)), default=None
        )

    return read


def file_rows(answer: Answer, file: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a file of the folder of measurements."""
    assert answer.measurements is not None, "the command has read a file of it"
    with (answer.measurements / file).open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def median_of_rows(file: str, wanted: Callable[[dict[str, str]], bool]) -> Callable[[Answer], float | None]:
    """Return what reads the median error of some rows of a file of operations, in percent; systems weigh the same."""

    def read(answer: Answer) -> float | None:
        pairs = [
            (row["system"], found["predicted_us"], found["measured_us"])
            for row, found in zip(file_rows(answer, file), answer.document["rows"], strict=True)
            if wanted(row) and found["predicted_us"] and found["measured_us"]
        ]
        errors = errors_of(pairs)
        return None if errors is None else 100 * errors.median_absolute

    return read


def products(dtypes: tuple[str, ...]) -> Callable[[Answer], float | None]:
    """Return what reads the median error of products in some number formats, in percent."""
    return median_of_rows("kernels/gemm.csv", lambda row: row["dtype"] in dtypes)


def check(name: str, about: str, words: tuple[str, ...], *measures: Measure) -> Check:
    """Return a check of one command."""
    return Check(area="accuracy", name=name, about=about, run=Command(words=words, measures=measures))


def left_out(name: str, file: str, most: float) -> Check:
    """Return the check of the kernels of a file, each predicted by the tables of the others."""
    return check(
        name,
        f"{file}: points left out of the tables are predicted by the others",
        words_of(file, options=("--left-out", "5")),
        summary("median error", at_most(most, "%"), "latency", "median_absolute"),
    )


MEDIAN = "median_absolute"

CHECKS = (
    check(
        "training",
        "published training runs are predicted and ranked, in a minute",
        words_of(TRAINING, STUDY),
        summary("step time of dense models, median error", at_most(6.5, "%"), "step_time", "dense", MEDIAN),
        summary("step time of experts, median error", at_most(18, "%"), "step_time", "experts", MEDIAN),
        summary("Spearman in choice sets, median", at_least(0.93), "choice_sets", "spearman_median"),
        summary("Spearman, tenth percentile", at_least(0.82), "choice_sets", "spearman_tenth_percentile"),
        summary("regret of the best", at_most(3, "%"), "choice_sets", "regret_mean"),
        summary("regret of the best of three", at_most(0.8, "%"), "choice_sets", "top_regret_mean"),
        *(
            measure
            for group in ("simumax", "torchtitan")
            for measure in (
                Measure(name=f"peak memory of {group}, median", target=at_most(3, "%"), read=median_peak(group)),
                Measure(name=f"peak memory of {group}, worst", target=at_most(8, "%"), read=worst_peak(group)),
            )
        ),
        summary("coverage", at_least(97, "%"), "coverage"),
        seconds_at_most(60),
    ),
    check(
        "training-left-out",
        "runs are predicted by constants that were fitted without their source",
        words_of(TRAINING, STUDY, options=("--refit-without", "source_group")),
        figure("step time, median error", at_most(14, "%"), "refit_without", "all", "errors", MEDIAN),
        figure(
            "after one scale of 3 runs of a stack",
            at_most(7, "%"),
            *("refit_without", "all", "median_absolute_after_one_scale"),
        ),
    ),
    check(
        "out-of-memory",
        "which runs of the layouts study ran out of memory is foreseen",
        words_of(STUDY),
        summary("recall", at_least(0.985), "out_of_memory", "recall"),
        summary("F1", at_least(0.96), "out_of_memory", "f1"),
    ),
    check(
        "functional-tests",
        "peaks of Megatron-LM's functional tests are predicted",
        words_of("training/memory_unit_rows.csv"),
        summary("peak memory, median error", at_most(5, "%"), "peak_memory", MEDIAN),
    ),
    check(
        "products-left-out",
        "matrix products left out of the tables are predicted by the others",
        words_of("kernels/gemm.csv", options=("--left-out", "5")),
        Measure(name="bf16, median error", target=at_most(3, "%"), read=products(BF16)),
        Measure(name="fp8, median error", target=at_most(6, "%"), read=products(FP8)),
    ),
    check(
        "products-surface",
        "matrix products are predicted by the analytic surfaces alone",
        words_of("kernels/gemm.csv", options=("--surface-only",)),
        Measure(name="bf16, median error", target=at_most(8, "%"), read=products(BF16)),
    ),
    left_out("prefill-left-out", "kernels/attention_prefill.csv", 6),
    left_out("decode-left-out", "kernels/attention_decode.csv", 6),
    left_out("experts-left-out", "kernels/moe.csv", 6),
    check(
        "collectives-left-out",
        "collectives over NVLink left out of the tables are predicted by the others",
        words_of("kernels/collectives.csv", options=("--left-out", "5")),
        Measure(
            name="inside a node, median error",
            target=at_most(5, "%"),
            read=median_of_rows("kernels/collectives.csv", lambda row: row["num_nodes"] == "1"),
        ),
    ),
    check(
        "collectives-between-nodes",
        "collectives of Polaris and Alps are predicted by tables of other numbers of nodes",
        words_of("kernels/collectives.csv", options=("--left-out", "nodes")),
        summary("median error", at_most(15, "%"), "latency", MEDIAN),
    ),
    Check(
        area="accuracy",
        name="constants",
        about="at most 25 constants were fitted, each inside its range and with its source",
        run=Suite(nodes=("tests/unit/profiles/test_constants.py",)),
    ),
)
