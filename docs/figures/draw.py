"""Draws the figures of the documents: `python -m docs.figures.draw` writes one for each strategy, the choice, and the
README's overview.

Each figure of a strategy shows 4 devices: of what a step needs, the coloured part is what a device holds; below, what
crosses between devices in a step. Page, text and lines are light or dark as the reader's system is.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from docs.figures.choice import draw_choice
from docs.figures.overview import draw_overview
from docs.figures.svg import WIDTH, svg, text

FOLDER = Path(__file__).parent
DEVICES = 4
COLOURS = {"parameters": "#0072B2", "gradients": "#D55E00", "Adam's states": "#009E73", "activations": "#B8860B",
           "second copy": "#56B4E9"}

Part = tuple[float, float]  # from and to, of the whole
Share = Callable[[int], list[Part]]  # device -> the parts that it holds


class Crossing(NamedTuple):
    """What crosses between devices in a step.

    Args:
        groups: of devices that exchange it, by their numbers.
        is_chain: whether it goes from neighbour to neighbour.
    """

    text: str
    groups: list[list[int]]
    is_chain: bool = False


class Picture(NamedTuple):
    title: str
    holds: dict[str, Share]
    crossings: list[Crossing]


def whole(device: int) -> list[Part]:
    return [(0, 1)]


def shard(device: int) -> list[Part]:
    return [(device / DEVICES, (device + 1) / DEVICES)]


def half(device: int) -> list[Part]:
    return [(device % 2 / 2, (device % 2 + 1) / 2)]


def samples_of_pair(device: int) -> list[Part]:
    """The samples that a group of two neighbours shares."""
    return half(device // 2)


def first_only(device: int) -> list[Part]:
    return [] if device else [(0, 1)]


def two_pieces(device: int) -> list[Part]:
    """Of 8 pieces of the model the ones that zbv gives a device: the first device has the first and the last."""
    return [(device / 8, (device + 1) / 8), (1 - (device + 1) / 8, 1 - device / 8)]


def holding(parameters: Share, gradients: Share, states: Share, activations: Share) -> dict[str, Share]:
    return dict(zip(COLOURS, (parameters, gradients, states, activations), strict=False))


ALL, PAIRS, ACROSS = [[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 2], [1, 3]]
PICTURES = {
    "ddp": Picture("DDP, ZeRO-0, Hugging Face's Trainer", holding(whole, whole, whole, shard), [
        Crossing("gradients, averaged over all: once a step", ALL)]),
    "data_parallel": Picture("DataParallel: one process", holding(first_only, first_only, first_only, shard), [
        Crossing("parameters, copied from the first to all: every micro-batch", ALL),
        Crossing("gradients, summed up on the first: every micro-batch", ALL)]),
    "zero1": Picture("ZeRO-1", holding(whole, whole, shard, shard), [
        Crossing("gradients, averaged over all: once a step", ALL),
        Crossing("updated parameters, gathered: once a step", ALL)]),
    "zero2": Picture("ZeRO-2", holding(whole, shard, shard, shard), [
        Crossing("gradients, to their owners: every micro-batch", ALL),
        Crossing("updated parameters, gathered: once a step", ALL)]),
    "zero3": Picture("ZeRO-3", holding(shard, shard, shard, shard), [
        Crossing("parameters, gathered: every micro-batch", ALL),
        Crossing("gradients, to their owners: every micro-batch", ALL)]),
    "zero3_hpz": Picture("ZeRO-3 with --secondary_shard_group 2 (hpZ)",
                         holding(shard, shard, shard, shard) | {"second copy": half}, [
        Crossing("parameters, gathered: in the first micro-batch after an update", ALL),
        Crossing("parameters, gathered within a group: every other micro-batch", PAIRS),
        Crossing("gradients, to their owners: every micro-batch", ALL)]),
    "fsdp": Picture("FSDP", holding(shard, shard, shard, shard), [
        Crossing("parameters, gathered layer by layer: twice every micro-batch", ALL),
        Crossing("gradients, to their owners: once a step", ALL)]),
    "fsdp_hybrid": Picture("FSDP with --shard_group 2 (hybrid)", holding(half, half, half, shard), [
        Crossing("parameters, gathered within a group, layer by layer: twice every micro-batch", PAIRS),
        Crossing("gradients, to their owners within a group: once a step", PAIRS),
        Crossing("gradients of the same half, averaged across groups: once a step", ACROSS)]),
    "tensor_parallel": Picture("tensor parallel; embeddings and the head are whole",
                               holding(shard, shard, shard, whole), [
        Crossing("activations and their gradients, added up: 4 times a layer and micro-batch", ALL)]),
    "tensor_parallel_fsdp": Picture("tensor parallel in groups of 2, --shard_replicas (2-D)",
                                    holding(shard, shard, shard, samples_of_pair), [
        Crossing("activations and their gradients, added up within a group: 4 times a layer and micro-batch", PAIRS),
        Crossing("parameters of the same half, gathered across groups: twice every micro-batch", ACROSS),
        Crossing("gradients of the same half, to their owners across groups: once a step", ACROSS)]),
    "pipeline": Picture("pipeline of 4 stages", holding(shard, shard, shard, shard), [
        Crossing("activations and their gradients, to the neighbour: every micro-batch", ALL, is_chain=True)]),
    "torch_pipeline": Picture("pipeline with two pieces on a device (zbv)",
                              holding(two_pieces, two_pieces, two_pieces, two_pieces), [
        Crossing("activations and their gradients, there and back: every micro-batch", ALL, is_chain=True)]),
}

LEFT, BOX, GAP, ROW = 104, 128, 14, 24  # pixels
assert LEFT + DEVICES * (BOX + GAP) == WIDTH


def centre(device: int) -> float:
    return LEFT + device * (BOX + GAP) + BOX / 2


def draw(picture: Picture) -> str:
    """A strategy's figure."""
    height = 62 + ROW * len(picture.holds) + 40 * len(picture.crossings) + 8

    def parts() -> Iterator[str]:
        yield text(4, 18, picture.title, "title")
        for device in range(DEVICES):
            yield text(centre(device), 40, f"device {device}", "small", "middle")
        for row, (name, share) in enumerate(picture.holds.items()):
            y = 48 + row * ROW
            yield text(4, y + 14, name, "small")
            for device in range(DEVICES):
                x = centre(device) - BOX / 2
                yield f'<rect x="{x:g}" y="{y}" width="{BOX}" height="{ROW - 6}" class="empty"/>'
                for begin, end in share(device):
                    yield (f'<rect x="{x + begin * BOX:g}" y="{y}" width="{(end - begin) * BOX:g}" height="{ROW - 6}" '
                           f'fill="{COLOURS[name]}"/>')
        y = 62 + ROW * len(picture.holds)
        for crossing in picture.crossings:
            yield text((centre(0) + centre(DEVICES - 1)) / 2, y + 8, crossing.text, "small", "middle")
            for place, group in enumerate(crossing.groups):
                level = y + 20 + 7 * place * (crossing.groups == ACROSS)
                ends = list(zip(group, group[1:], strict=False)) if crossing.is_chain else [(group[0], group[-1])]
                for one, other in ends:
                    yield from arrow(centre(one), centre(other), level)
                if not crossing.is_chain:
                    yield from (f'<circle cx="{centre(device):g}" cy="{level:g}" r="3" class="head"/>'
                                for device in group)
            y += 40

    return svg(height, list(parts()), f"{picture.title}: what each device holds, and what crosses in a step")


def arrow(left: float, right: float, y: float) -> Iterator[str]:
    """A line with a head at both ends."""
    yield f'<path d="M {left:g} {y:g} H {right:g}" class="line"/>'
    for x, away in ((left, 7), (right, -7)):
        yield f'<path d="M {x:g} {y:g} l {away} -4 v 8 z" class="head"/>'


def figures() -> dict[str, str]:
    """File name -> content."""
    return {f"{name}.svg": draw(picture) for name, picture in PICTURES.items()} | {
        "choice.svg": draw_choice(), "overview.svg": draw_overview()}


if __name__ == "__main__":
    for name, content in figures().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
