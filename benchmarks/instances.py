"""The instances that the search is measured on: specs with what is wanted of it, and the specs of `examples/`."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.meshes import Run
from planner.inputs.load import load_inputs

ROOT = Path(__file__).resolve().parent.parent
SPECS = ROOT / "benchmarks" / "specs"
EXAMPLES = ROOT / "examples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the search should keep to.

    Args:
        seconds: Of solving.
        gap: At most, where the gap is not closed; None wants nothing of it.
    """

    seconds: float
    gap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One spec to plan."""

    name: str
    spec: Path
    wanted: Wanted | None = None

    def run(self) -> Run:
        """Return what the spec asks for."""
        inputs = load_inputs(self.spec, (), options={})
        return Run(model=inputs.model, cluster=inputs.cluster, request=inputs.request)


WANTED = {
    "llama-3.1-70b-8xdgx-h100": Wanted(seconds=1.0),
    "llama-3.1-405b-16384xh100": Wanted(seconds=5.0),
    "deepseek-v3-2048xh100": Wanted(seconds=10.0, gap=0.005),
    "kimi-k2-131072xh100": Wanted(seconds=60.0),
}
WANTED_PEAK_RSS_BYTES = 10**9


def instances() -> tuple[Instance, ...]:
    """Return every instance: those of the examples, then those made for measuring, by name."""
    specs = {spec.parent.name: spec for spec in sorted(EXAMPLES.glob("*/spec.yaml"))}
    specs |= {spec.stem: spec for spec in sorted(SPECS.glob("*.yaml"))}
    return tuple(Instance(name=name, spec=spec, wanted=WANTED.get(name)) for name, spec in specs.items())
