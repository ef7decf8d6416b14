"""How tokens choose experts, as users write it.

```yaml
routing: {histogram: counts.json}
routing: {histogram: zipf:1.0, seed: 0}                    # or lognormal:0.5, or uniform
routing: {histogram: counts.npy, capacity_factor: 1.25}    # drops tokens: results change
routing: {histogram: counts.npy, reroute: least-loaded}    # for target any: neither Megatron-LM nor DeepSpeed does it
routing: {histogram: counts.json, reorder: false}          # experts stay in the checkpoint's order
```

A histogram is a file that `planner.experts.histogram_files` reads, relative to the spec, or an assumption of
`planner.experts.assumed`, drawn for the model's layers and experts. It has a row for each layer of the model, or for
each that has experts; rows without any token are left out. Counts that are no whole numbers are kept as parts of
`PARTS` of their layer.

Counts of a checkpoint's own experts let them be reordered (`planner.experts.ordering`), so they are unless `reorder`
says no. An assumption knows none of them by number: under one they are only where `reorder` says so.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, StrictBool, StrictInt, model_validator

from planner.documents import Document
from planner.errors import InputError
from planner.experts.assumed import assumed_histogram, is_assumption
from planner.experts.histogram import Floats, RoutingHistogram
from planner.experts.histogram_files import read_histogram
from planner.experts.of_model import RoutedExperts, routed_experts
from planner.models.specs import ModelSpec
from planner.requests.routing import Routing
from planner.schema.field_types import Text
from planner.schema.strict import Closed
from planner.schema.translate import complaint

PARTS = 10**9
ROUTING = ("workload", "routing")
"""Where a spec says it."""


class HistogramFile(Closed):
    """Which experts tokens choose: counted, or assumed."""

    histogram: Annotated[
        Text, Field(description="Give a file of counts, or an assumption: zipf:1.0, lognormal:0.5 or uniform.")
    ]
    seed: Annotated[StrictInt, Field(ge=0, le=1 << 31)] = 0


class RoutingFile(HistogramFile):
    """The same of a training run, which may drop the tokens beyond an expert's capacity."""

    capacity_factor: Annotated[float, Field(strict=True, gt=0, le=1024)] | None = None
    pad_to_capacity: StrictBool = False
    reroute: Literal["least-loaded"] | None = None
    reorder: StrictBool | None = None

    @model_validator(mode="after")
    def _pads_to_something(self) -> "RoutingFile":
        if self.pad_to_capacity and self.capacity_factor is None:
            raise complaint(
                "`pad_to_capacity` is given without a capacity.", "Add capacity_factor: 1.25.", field="pad_to_capacity"
            )
        if self.reroute is not None and self.capacity_factor is not None:
            raise complaint(
                "`reroute` and `capacity_factor` both say what becomes of tokens beyond a rank's share.",
                "Give one of the two.",
                field="reroute",
            )
        if self.reorder and (self.pad_to_capacity or self.reroute is not None):
            raise complaint(
                "`reorder` moves experts between ranks that all get the same.",
                "Remove it, or pad_to_capacity and reroute.",
                field="reorder",
            )
        return self

    @property
    def reorders(self) -> bool:
        """Return whether orders of the experts are looked for."""
        if self.pad_to_capacity or self.reroute is not None:
            return False
        return not is_assumption(self.histogram) if self.reorder is None else self.reorder


def read_routing(described: HistogramFile, *, model: ModelSpec, document: Document, base: Path) -> Routing:
    """Return the routing that a spec describes.

    Args:
        described: The description.
        model: Whose experts are chosen.
        document: The spec.
        base: Directory that the file of counts is relative to.

    Raises:
        InputError: The model has no experts or not these, or the file cannot be read.
    """
    where = document.locate((*ROUTING, "histogram"))
    try:
        known = routed_experts(model)
        found = _histogram(described.histogram, known, seed=described.seed, base=base)
        layers = _layers_in_model(found, known, model)
    except InputError as error:
        if error.location is not None:
            raise
        raise InputError(error.message, location=where, hint=error.hint) from error
    counted = found.counted_layers
    routing = Routing(
        source=found.source if found.assumed else described.histogram,
        layers=tuple(layers[index] for index in counted.tolist()),
        counts=tuple(_row(tokens_E) for tokens_E in found.tokens_LE[counted]),
    )
    if not isinstance(described, RoutingFile):
        return routing
    return replace(
        routing,
        capacity_factor=described.capacity_factor,
        pads_to_capacity=described.pad_to_capacity,
        reroutes=described.reroute is not None,
    )


def _histogram(name: str, known: RoutedExperts, *, seed: int, base: Path) -> RoutingHistogram:
    if is_assumption(name):
        return assumed_histogram(name, num_layers=len(known.layers), num_experts=known.num_experts, seed=seed)
    return read_histogram(base / Path(name).expanduser())


def _layers_in_model(found: RoutingHistogram, known: RoutedExperts, model: ModelSpec) -> Sequence[int]:
    """Return the layer of the model that each row of counts is of."""
    if found.num_experts != known.num_experts:
        raise InputError(
            f"{found.source} counts {found.num_experts} experts; {model.name} has {known.num_experts}.",
            hint="Give the counts of this model.",
        )
    if found.num_layers == known.num_layers_of_model:
        idle = sorted(set(found.counted_layers.tolist()) - set(known.layers))
        if idle:
            raise InputError(
                f"{found.source} counts tokens in layer {idle[0]}, and that of {model.name} has no experts.",
                hint="Give the counts of this model.",
            )
        return range(found.num_layers)
    if found.num_layers != len(known.layers):
        raise InputError(
            f"{found.source} counts {found.num_layers} layers; {model.name} has {known.num_layers_of_model}, "
            f"{len(known.layers)} of them with experts.",
            hint="Give a row for each layer, or for each that has experts.",
        )
    return known.layers


def _row(tokens_E: Floats) -> str:
    whole = tokens_E if (tokens_E == np.floor(tokens_E)).all() else np.rint(tokens_E * (PARTS / tokens_E.sum()))
    return ",".join(str(int(tokens)) for tokens in whole)
