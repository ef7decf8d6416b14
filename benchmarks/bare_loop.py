"""A loop of Python whose time says how fast the machine is just then."""


def bare_loop(steps: int) -> float:
    """Return the clock after so many steps of a thousandth of a second, added up one by one."""
    clock = 0.0
    for _ in range(steps):
        clock += 1e-3
    return clock
