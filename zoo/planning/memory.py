"""Bytes of one device at the fullest moment of an update, by kind. Imports no torch.

Two moments compete: the backward pass, with activations and whole gradients, and the update, with copies of gradients.
Every kind is stated in full, and `buffers` is what the fuller moment needs beyond them, so that kinds sum to the peak.
Measured on CPUs in fp32, DALL-E priors of 14 to 515 million parameters on two processes take 0.88 to 1.11 times the
plan at stages 0 to 3 (zoo.bench.memory), where freed blocks go back to the system. An allocator that keeps them, such
as glibc's as `zoo.train.allocator` sets it, takes up to 1.9 times as much at stage 3, whose blocks come in many sizes.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, section 2.4 and appendices D, E
[2] DeepSpeed 0.19.8: deepspeed/runtime/zero/stage3.py, stage_1_and_2.py, and ../engine.py for stage 0
"""

from __future__ import annotations

import attrs

from zoo.cost import Cost
from zoo.interfaces import Traffic
from zoo.planning.buckets import MEAN
from zoo.planning.jobs import Job
from zoo.planning.stages import Stage

FLAT = 500_000_000
"""Values of the gradients that DeepSpeed lays end to end at stage 0, even where no one is to hear of them [2]."""


@attrs.frozen(kw_only=True)
class Memory:
    """Bytes of one device."""

    parameters: int
    """The share the forward pass is made from."""
    master: int
    """An fp32 copy beside 16-bit parameters."""
    moments: int
    """Adam's two, of matrices in 16 bits each where the recipe or the storage says so."""
    gradients: int
    """Those that live from the backward pass to the update."""
    average: int
    """The moving average of the weights."""
    frozen: int
    """Parts that the stage only reads, in fp32."""
    activations: int
    """Kept for the backward pass, and the gradients of the largest two of them."""
    buffers: int
    """Gathered parameters, whole gradients before they are sharded, buckets, factors and error feedback of a reducer,
    copies the update works on."""

    @property
    def state(self) -> int:
        """What is there all the time, whatever the batch."""
        return self.parameters + self.master + self.moments + self.gradients + self.average + self.frozen

    @property
    def total(self) -> int:
        """Their sum, the peak."""
        return sum(attrs.astuple(self))


def memory(stage: Stage, job: Job, reduced: Traffic | None = None) -> Memory:
    """Return a device's memory for a stage.

    Args:
        stage, job: what is trained and how.
        reduced: what the reducer sends, where one compresses.
    """
    state = _paper(stage.cost, job) if job.storage == "paper" else _deepspeed(stage.cost, job)
    if stage.recipe.moments == "16-bit" and job.storage == "zoo":  # DeepSpeed's own optimiser knows none of 16 bits
        state["moments"] = _moments16(stage.cost, job)
    held = -(-stage.cost.params // job.group)
    width = job.widths
    working = 2 * stage.cost.largest * width.inner * job.micro
    activations = stage.cost.activations(job.micro, width, recompute=job.recompute) + working
    passing, update = state.pop("passing"), state.pop("update")
    if job.copies > 1 and reduced is None:
        update = max(update, _mean(stage.cost, job))
    if reduced is not None:
        update += max(reduced.matrices, reduced.rest)  # factors; what goes whole has gone before
        feedback = 0 if job.storage == "paper" else reduced.matrices_dense
        passing, update = passing + feedback, update + feedback
    # The paper copies its average to the hosts [1], and DeepSpeed has none of its own.
    average = 4 * held if stage.recipe.ema is not None and stage.recipe.ema_device == "same" and not job.half else 0
    return Memory(
        **state,
        average=average,
        frozen=4 * stage.frozen_params,
        activations=activations,
        buffers=max(passing, update - activations),
    )


def sampling(stage: Stage, job: Job) -> int:
    """Return a device's memory while sample pictures are drawn: sharded parameters are whole on every device, in fp32.

    0 where nothing is made whole: nothing is sharded, the storage is not this zoo's, or the part draws nothing. What
    a picture itself takes is left out. Training draws none where there is no room, so this is no part of its peak.
    """
    if job.shards == 1 or job.storage != "zoo" or stage.part == "reranker":
        return 0
    return memory(stage, job).state + 4 * stage.cost.params


def _deepspeed(cost: Cost, job: Job) -> dict[str, int]:
    """What DeepSpeed allocates [2], and what plain torch does where nothing is sharded."""
    params, zero, buckets = cost.params, job.zero, job.buckets.within(cost.params)
    width = 2 if job.half else 4
    if zero == 0:
        state = {"parameters": 4 * params, "master": 0, "moments": 8 * params, "gradients": 4 * params}
        flat = 4 * min(params, FLAT) if job.devices > 1 else 0
        return {**state, "passing": _casts(cost, job), "update": flat}
    share = -(-params // job.group)
    state = {
        "parameters": width * (share if zero == 3 else params),
        "master": 4 * share,  # also in fp32, where it is a copy of the same
        "moments": 8 * share,
        "gradients": width * (share if zero >= 2 else params),
    }
    largest = max((w.numel for w in cost.weights), default=0)
    bucket = width * buckets.reduce
    if zero < 3:  # the bucket lives during the backward pass; the update works on a copy of its share
        return {**state, "passing": bucket + width * largest + _casts(cost, job), "update": 4 * share}
    # Gradients on their way: the bucket sorted by shards, and the one that autograd has just made.
    reducing = width * (max(buckets.reduce, largest) + largest)
    # Parameters on their way: those fetched ahead, which may overshoot by one, and the one at work, before their
    # shards are joined. A lone device has them whole as they are.
    joining = width * (buckets.prefetch + 2 * largest)
    whole = width * min(params, max(buckets.live, buckets.reuse, _persistent(cost, job)) + largest)
    if job.group == 1:
        joining = whole = 0
    return {
        **state,
        "passing": bucket + whole + max(reducing, joining) + _casts(cost, job),
        "update": bucket + width * _persistent(cost, job) + 4 * min(buckets.group + largest, share),
    }


def _moments16(cost: Cost, job: Job) -> int:
    """Return the bytes of moments in 1-6-9 and 0-6-10 for matrices, and in fp32 for the rest."""
    matrices = sum(w.numel for w in cost.weights if cost.is_matrix(w))
    return 4 * -(-matrices // job.group) + 8 * -(-(cost.params - matrices) // job.group)


def _mean(cost: Cost, job: Job) -> int:
    """Return the bytes of gradients laid end to end to be averaged between copies, before the optimiser's own copies.

    DeepSpeed's bucket is there beside them.
    """
    buckets, width = job.buckets.within(cost.params), 2 if job.half else 4
    held = -(-cost.params // job.group)
    largest = max((-(-w.numel // job.shards) for w in cost.weights), default=0)
    return width * min(held, max(MEAN, largest)) + (width * buckets.reduce if job.zero else 0)


def _casts(cost: Cost, job: Job) -> int:
    """Return the bytes of 16-bit copies of fp32 weights, which are whole and live until their products' backward."""
    if not job.casts:
        return 0
    blocks: dict[str | None, int] = {}
    for w in cost.weights:
        if cost.is_matrix(w):
            blocks[w.block] = blocks.get(w.block, 0) + 2 * w.numel
    return max(blocks.values(), default=0) if job.recompute else sum(blocks.values())


def _persistent(cost: Cost, job: Job) -> int:
    """Return the values of parameters too small to be partitioned away."""
    return sum(w.numel for w in cost.weights if w.numel < job.buckets.persist)


def _paper(cost: Cost, job: Job) -> dict[str, int]:
    """The paper's storage [1]: matrices 2 bytes, moments 2 + 2 (1-6-9 and 0-6-10), the error buffer, which is the
    gradient buffer, 2 (1-6-9); embeddings, heads, gains and biases in fp32 with fp32 moments, sharded as well."""
    matrices = sum(w.numel for w in cost.weights if cost.is_matrix(w))
    share, rest = -(-matrices // job.group), -(-(cost.params - matrices) // job.group)
    blocks: dict[str, int] = {}
    tables = [0]
    for w in cost.weights:
        if cost.is_matrix(w):
            blocks[w.block or ""] = blocks.get(w.block or "", 0) + 2 * w.numel
        else:
            tables.append(4 * w.numel)
    # Two neighbouring blocks gathered (at work, and fetched ahead), and the gradient of one that is not sharded yet;
    # or a table with its gradient, before the first block and after the last.
    two = sorted(blocks.values())[-2:] or [0]
    return {
        "parameters": 2 * share + 4 * rest,
        "master": 0,
        "moments": _moments16(cost, job),
        "gradients": 2 * share + 4 * rest,
        "passing": max(sum(two) + two[-1], 2 * max(tables)),
        "update": 4 * max((w.numel for w in cost.weights), default=0) // job.group,  # one matrix decompressed in fp32
    }
