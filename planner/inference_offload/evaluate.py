"""Prices a finished plan anew, by simulating the order in which a runtime would do its work.

The search takes each part of the node to be busy without a pause. Here one pass is simulated, layer by layer and batch
by batch, in the order of FlexGen's Algorithm 1 (arXiv 2303.06865): with each batch of a layer a piece of the next
layer's weights is brought, one batch's cache and activations are on their way while another one is computed, and where
the CPU attends, the GPU goes on with the next batch's projections until the answer is back. Every part does its work in
the order in which it is asked, each piece when what it waits for is there. Routed experts wait for all batches of a
layer, whose tokens they take together.

Layers count as equal: each has its part of the whole model's work. A pass is the time between the ends of the second
and the third one. Nothing here is shared with `planner.inference_offload.prices` but the model's work and the node.
"""

import math
from dataclasses import dataclass, fields, replace

from planner.inference_offload.machine import Machine
from planner.inference_offload.plan import TargetPlan
from planner.inference_offload.request import WORDS, OffloadRequest, Place, Thing
from planner.inference_offload.work import ModelWork

MOST_SIMULATED = 32
"""Batches of a simulated pass: more are joined into so many larger ones."""

PASSES = 3
"""Passes that are simulated; the last one is timed, behind the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """Seconds of one layer: of what is brought once, of each batch, and of the experts behind them.

    Args:
        weights_read: Drive, the layer's weights.
        weights_up: Link to the GPU.
        weights_peer: Link from peers.
        cache_read: Drive, one batch's cache.
        cache_up: Link to the GPU.
        cache_peer: Link from peers.
        before: GPU, up to attention, and attention itself as far as the GPU does it.
        after: GPU, behind it.
        cpu_products: CPU, its share of the products.
        query_down: Link to the host, what the CPU works on.
        attention: CPU.
        attended_up: Link to the GPU, what it has worked on.
        stored_down: Link to the host, new keys and values.
        stored_write: Drive.
        stored_peer: Link to peers.
        hidden: Link, activations of one batch, each way.
        experts: GPU, all batches.
        experts_cpu: CPU, all batches.
        experts_moved: Link, their tokens, each way.
    """

    weights_read: float = 0.0
    weights_up: float = 0.0
    weights_peer: float = 0.0
    cache_read: float = 0.0
    cache_up: float = 0.0
    cache_peer: float = 0.0
    before: float = 0.0
    after: float = 0.0
    cpu_products: float = 0.0
    query_down: float = 0.0
    attention: float = 0.0
    attended_up: float = 0.0
    stored_down: float = 0.0
    stored_write: float = 0.0
    stored_peer: float = 0.0
    hidden: float = 0.0
    experts: float = 0.0
    experts_cpu: float = 0.0
    experts_moved: float = 0.0


_ONCE = {"weights_read", "weights_up", "weights_peer", "experts", "experts_cpu", "experts_moved"}
"""What a layer has once, however many batches go through it."""


def simulated_seconds(
    plan: TargetPlan, work: ModelWork, machine: Machine, request: OffloadRequest
) -> tuple[float, float]:
    """Return the time of a block's prompts, and of one pass for a token of each of its sequences.

    Args:
        plan: What lies where, in blocks of which size.
        work: The model.
        machine: The node.
        request: Lengths.
    """
    layers, batches = work.num_layers, plan.num_batches
    amounts = _Amounts(plan, work, machine, request)
    answers = _pass_seconds(_scaled(amounts.answer_layer(), batches), layers, batches)
    prompt = amounts.prompt_layer()
    if WORDS[plan.target].streams_per_slice:
        # Every slice is a pass of its own, with a part of the batch's work and all the weights.
        slices = math.ceil(plan.batch_size / amounts.together)
        part = replace(prompt, before=prompt.before / slices, stored_down=prompt.stored_down / slices)
        return slices * _pass_seconds(part, layers, 1), answers
    return _pass_seconds(_scaled(prompt, batches), layers, batches), answers


def _scaled(layer: _Layer, batches: int) -> _Layer:
    """Return a layer whose batches are joined into `MOST_SIMULATED`, where there are more."""
    if batches <= MOST_SIMULATED:
        return layer
    factor = batches / MOST_SIMULATED
    each = {field.name: getattr(layer, field.name) * factor for field in fields(layer) if field.name not in _ONCE}
    return replace(layer, **each)


def _seconds_of(num_bytes: float, bytes_per_second: float) -> float:
    return num_bytes / bytes_per_second if num_bytes else 0.0


class _Amounts:
    """What a plan asks of the node in one layer."""

    def __init__(self, plan: TargetPlan, work: ModelWork, machine: Machine, request: OffloadRequest) -> None:
        words = WORDS[plan.target]
        self._plan, self._work, self._machine, self._request = plan, work, machine, request
        self._merged = not words.parts_experts
        most, batch = plan.slice_tokens, plan.batch_size
        self.together = batch if most is None else min(batch, max(1, most // request.prompt_tokens))

    def _share(self, thing: Thing, place: Place, *, on_cpu: bool | None = None) -> float:
        """Return the share of a thing that lies in a place, and is used there by the CPU or not."""
        return sum(
            placed.share
            for placed in self._plan.placed
            if placed.option.thing is thing
            and placed.option.use.place is place
            and (on_cpu is None or placed.option.use.on_cpu is on_cpu)
        )

    def _weights(self, *, by_gpu_alone: bool) -> _Layer:
        work, machine = self._work, self._machine
        each = (work.dense_bytes + (work.routed_bytes if self._merged else 0.0)) / work.num_layers
        drives = self._share(Thing.WEIGHTS, Place.DRIVE) * each
        brought = self._share(Thing.WEIGHTS, Place.HOST, on_cpu=None if by_gpu_alone else False) * each + drives
        peers = self._share(Thing.WEIGHTS, Place.PEER) * each
        return _Layer(
            weights_read=_seconds_of(drives, machine.drive_bytes_per_second),
            weights_up=brought / machine.link_bytes_per_second,
            weights_peer=_seconds_of(peers, machine.peer_bytes_per_second),
        )

    def prompt_layer(self) -> _Layer:
        """Return what a layer takes of the prompts."""
        work, machine, tokens = self._work, self._machine, self._request.prompt_tokens
        layers, batch = work.num_layers, self._plan.batch_size
        whole, rest = divmod(batch, self.together)
        gpu = whole * work.prompts(self.together, tokens).total + (work.prompts(rest, tokens).total if rest else 0.0)
        cache = work.cache_bytes(tokens) * batch / layers
        peers, drives = self._share(Thing.CACHE, Place.PEER), self._share(Thing.CACHE, Place.DRIVE)
        away = self._share(Thing.CACHE, Place.HOST) + drives
        hidden = self._share(Thing.ACTIVATIONS, Place.HOST) * batch * tokens * work.hidden_bytes
        layer = replace(
            self._weights(by_gpu_alone=True),
            before=gpu / layers,
            stored_down=away * cache / machine.link_bytes_per_second,
            stored_write=_seconds_of(drives * cache, machine.drive_write_bytes_per_second),
            stored_peer=_seconds_of(peers * cache, machine.peer_bytes_per_second),
            hidden=hidden / machine.link_bytes_per_second,
        )
        # The GPU's time has all experts in it; only bringing them is missing.
        return self._with_experts(layer, tokens=batch * self._plan.num_batches * tokens, by_gpu_alone=True)

    def answer_layer(self) -> _Layer:
        """Return what a layer takes of one token for each sequence, in the middle of the answers."""
        work, machine, batch = self._work, self._machine, self._plan.batch_size
        layers, link, drive = work.num_layers, machine.link_bytes_per_second, machine.drive_bytes_per_second
        context = self._request.prompt_tokens + self._request.output_tokens / 2
        times = work.answers(batch, context)
        by_cpu = self._share(Thing.WEIGHTS, Place.HOST, on_cpu=True)
        peers, drives = self._share(Thing.CACHE, Place.PEER), self._share(Thing.CACHE, Place.DRIVE)
        away = self._share(Thing.CACHE, Place.HOST) + drives
        brought = self._share(Thing.CACHE, Place.HOST, on_cpu=False)
        brought += self._share(Thing.CACHE, Place.DRIVE, on_cpu=False)
        attended = away - brought
        seen, new = work.read_cache_bytes(context) * batch, work.cache_bytes(1) * batch
        products = times.products * (1 - by_cpu)
        rest = times.rest + (times.experts if self._merged else 0.0)
        cpu_products = max(
            work.dense_bytes / machine.cpu_bytes_per_second,
            work.product_flops * batch / machine.cpu_flops_per_second,
        )
        attention = max(
            seen / machine.cpu_bytes_per_second, work.attention_flops(context) * batch / machine.cpu_flops_per_second
        )
        sent = attended * work.query_bytes + by_cpu * work.product_inputs_bytes
        received = attended * work.attended_bytes + by_cpu * work.product_outputs_bytes
        layer = replace(
            self._weights(by_gpu_alone=False),
            cache_read=_seconds_of(drives * seen, drive) / layers,
            cache_up=brought * seen / link / layers,
            cache_peer=_seconds_of(peers * seen, machine.peer_bytes_per_second) / layers,
            before=(products / 2 + times.attention * (1 - attended)) / layers,
            after=(products / 2 + rest) / layers,
            cpu_products=by_cpu * cpu_products / layers,
            query_down=sent * batch / link / layers,
            attention=attended * attention / layers,
            attended_up=received * batch / link / layers,
            stored_down=away * new / link / layers,
            stored_write=_seconds_of(drives * new, machine.drive_write_bytes_per_second) / layers,
            stored_peer=_seconds_of(peers * new, machine.peer_bytes_per_second) / layers,
            hidden=self._share(Thing.ACTIVATIONS, Place.HOST) * batch * work.hidden_bytes / link,
        )
        return self._with_experts(layer, tokens=batch * self._plan.num_batches, by_gpu_alone=False)

    def _with_experts(self, layer: _Layer, *, tokens: int, by_gpu_alone: bool) -> _Layer:
        """Return a layer with the routed experts of a runtime that parts them from the other weights."""
        work, machine = self._work, self._machine
        placed = [each for each in self._plan.placed if each.option.thing is Thing.EXPERTS]
        if not placed or work.expert is None:
            return layer
        part = work.expert_layers / work.num_layers
        up = read = peers = cpu = moved = on_gpu = 0.0
        for each in placed:
            group, use = work.groups[each.option.group], each.option.use
            reached = group.experts * group.reached(tokens) * each.share
            num_bytes = reached * work.expert_bytes * part
            if use.on_cpu and not by_gpu_alone:
                rows = tokens * work.expert.topk * group.share * each.share * part
                flops = rows * work.expert_flops / machine.cpu_flops_per_second
                cpu += max(num_bytes / machine.cpu_bytes_per_second, flops)
                moved += rows * work.expert_token_bytes
                continue
            on_gpu += reached
            up += num_bytes if use.place in {Place.HOST, Place.DRIVE} else 0.0
            read += num_bytes if use.place is Place.DRIVE else 0.0
            peers += num_bytes if use.place is Place.PEER else 0.0
        on_gpu /= sum(group.experts * group.reached(tokens) for group in work.groups)
        together = 0.0 if by_gpu_alone else work.answers(tokens, 1.0).experts
        return replace(
            layer,
            weights_up=layer.weights_up + up / machine.link_bytes_per_second,
            weights_read=layer.weights_read + _seconds_of(read, machine.drive_bytes_per_second),
            weights_peer=layer.weights_peer + _seconds_of(peers, machine.peer_bytes_per_second),
            experts=on_gpu * together / work.num_layers,
            experts_cpu=cpu,
            experts_moved=moved / machine.link_bytes_per_second,
        )


class _Node:
    """When each part of the node is free again."""

    def __init__(self) -> None:
        self._free: dict[str, float] = {}

    def does(self, part: str, ready: float, seconds: float) -> tuple[float, float]:
        """Return when a piece of work begins and ends that waits for its part and for what it needs."""
        if not seconds:
            return ready, ready
        begin = max(ready, self._free.get(part, 0.0))
        self._free[part] = begin + seconds
        return begin, begin + seconds

    def ends(self, part: str, ready: float, seconds: float) -> float:
        """Return when it ends."""
        return self.does(part, ready, seconds)[1]


def _pass_seconds(layer: _Layer, num_layers: int, num_batches: int) -> float:
    """Return the time of a pass behind others."""
    batches = min(num_batches, MOST_SIMULATED)
    node = _Node()
    done_B, weights_there, ends = [0.0] * batches, 0.0, []
    for _ in range(PASSES):
        for _ in range(num_layers):
            done_B, weights_there = _simulated_layer(node, layer, done_B, weights_there)
        ends.append(max(done_B))
    return ends[-1] - ends[-2]


def _simulated_layer(
    node: _Node, layer: _Layer, done_B: list[float], weights_there: float
) -> tuple[list[float], float]:
    """Return when each batch leaves a layer, and when the next layer's weights are there."""
    batches = len(done_B)
    next_weights = waiting_since = 0.0
    answered_B, left_B = [0.0] * batches, [0.0] * batches

    def finish(batch: int) -> None:
        end = node.ends("GPU", answered_B[batch], layer.after)
        node.ends("down", end, layer.hidden)
        left_B[batch] = end

    for batch in range(batches):
        asked = max(waiting_since, done_B[batch]) if batch else done_B[0]
        cache = node.ends("up", node.ends("drive", waiting_since, layer.cache_read), layer.cache_up)
        cache = max(cache, node.ends("peers", waiting_since, layer.cache_peer))
        hidden = node.ends("up", asked, layer.hidden)
        begin, end = node.does("GPU", max(weights_there, cache, hidden, done_B[batch]), layer.before)
        waiting_since = begin
        read = node.ends("drive", begin, layer.weights_read / batches)
        next_weights = max(next_weights, node.ends("up", read, layer.weights_up / batches))
        next_weights = max(next_weights, node.ends("peers", begin, layer.weights_peer / batches))
        sent = node.ends("down", end, layer.query_down)
        worked = node.ends("CPU", sent, layer.attention + layer.cpu_products)
        answered_B[batch] = node.ends("up", worked, layer.attended_up)
        node.ends("drive", node.ends("down", end, layer.stored_down), layer.stored_write)
        node.ends("peers", end, layer.stored_peer)
        if batch:
            finish(batch - 1)
    finish(batches - 1)
    if layer.experts or layer.experts_cpu:
        joined = max(left_B)
        by_gpu = node.ends("GPU", joined, layer.experts)
        by_cpu = node.ends("CPU", node.ends("down", joined, layer.experts_moved), layer.experts_cpu)
        joined = max(by_gpu, node.ends("up", by_cpu, layer.experts_moved))
        left_B = [joined] * batches
    return left_B, next_weights
