"""Every check, in the order in which they run."""

from benchmarks.checks import accuracy, experts, planning, profiling, search, serving, validation

CHECKS = (
    *planning.CHECKS,
    *accuracy.CHECKS,
    *search.CHECKS,
    *validation.CHECKS,
    *profiling.CHECKS,
    *serving.CHECKS,
    *experts.CHECKS,
)
