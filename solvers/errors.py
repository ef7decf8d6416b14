"""Errors of the solver layer."""


class SolverError(Exception):
    """The solver stopped with nothing to show: neither a solution nor a proof that there is none."""

    def __init__(self, *, solver: str, status: str, limit: str) -> None:
        super().__init__(f"{solver} stopped with status {status} under {limit} and found no solution")
        self.solver = solver
        self.status = status
        self.limit = limit
