"""The figure of the choice: model size against link speed, by formulas from the bytes that each strategy sends."""

import math
from collections.abc import Iterator

from docs.figures.svg import svg, text

# What the figure of the choice assumes; docs/strategies.md states it beside the figure.
COUNT, MICRO_BATCHES = 8, 4  # devices, and micro-batches of each in a step
ROOM, RATE, TOKENS = 40e9, 200e12, 8192  # of a device: bytes besides activations, FLOP/s, tokens a step
SPEEDS, SIZES = (1e9, 1e12), (1e8, 1e11)  # the axes: bytes/s of a device's link, parameters
PLOT_LEFT, PLOT_TOP, PLOT_WIDTH, PLOT_HEIGHT = 64, 46, 580, 320
SENT = (COUNT - 1) / COUNT * 4  # bytes a parameter, of what is gathered or scattered once

Limit = tuple[str, str, float, float]  # label, colour, bytes a parameter that a device holds, that it sends
# With several micro-batches FSDP holds whole gradients, 4 bytes a parameter.
BY_MEMORY: list[Limit] = [
    ("DDP", "#0072B2", 16, 2 * SENT),
    ("FSDP --reshard_after_forward false", "#8F4A70", 8 + 12 / COUNT, 2 * SENT),
    ("FSDP", "#CC79A7", 4 + 12 / COUNT, (2 * MICRO_BATCHES + 1) * SENT)]
STAGE_HOLDS = 16 / COUNT  # bytes a parameter


def speed_needed(bytes_sent: float) -> float:
    """The link speed at which sending so much a parameter takes as long as computing with it, in bytes/s."""
    return bytes_sent * RATE / (6 * TOKENS)


def pipeline_speed_needed(parameters: float) -> float:
    """The same for a pipeline of all devices: activations of all tokens there and back, in fp32.

    For transformers of 12 L h^2 parameters that are 100 times as wide as deep.
    """
    hidden = (parameters / 0.12) ** (1 / 3)
    return 2 * 4 * hidden * COUNT * RATE / (6 * parameters)


def place(speed: float, parameters: float) -> tuple[float, float]:
    """A point of the plot, whose axes are logarithmic; what lies outside is moved to the edge."""
    def share(value: float, ends: tuple[float, float]) -> float:
        return min(max(math.log(value / ends[0]) / math.log(ends[1] / ends[0]), 0), 1)

    return PLOT_LEFT + share(speed, SPEEDS) * PLOT_WIDTH, PLOT_TOP + (1 - share(parameters, SIZES)) * PLOT_HEIGHT


def draw_choice() -> str:
    """Model size against link speed: the strategy that fits and sends the least that the link keeps up with."""
    def parts() -> Iterator[str]:
        yield text(4, 18, f"{COUNT} devices: which strategy the bytes allow", "title")
        bottom, steps = SIZES[0], [SIZES[0] * 10 ** (step / 20) for step in range(61)]
        left = [place(pipeline_speed_needed(size), size) for size in steps if size <= ROOM / STAGE_HOLDS]
        right = []
        for _, _, held, sent in BY_MEMORY:
            right += [place(speed_needed(sent), bottom), place(speed_needed(sent), bottom := ROOM / held)]
        right += [place(SPEEDS[1], bottom), place(SPEEDS[1], ROOM / STAGE_HOLDS)]  # too large for the others
        yield polygon([*left, *reversed(right)], "#D55E00")
        x, y = place(8e9, 1e9)
        yield text(x, y, "pipeline", "on", "middle")
        bottom = SIZES[0]
        for label, colour, held, sent in BY_MEMORY:
            (x, low), (_, high) = place(speed_needed(sent), bottom), place(speed_needed(sent), ROOM / held)
            edge = PLOT_LEFT + PLOT_WIDTH
            yield polygon([(x, low), (edge, low), (edge, high), (x, high)], colour)
            yield text((x + edge) / 2, (low + high) / 2 + 4, label, "on", "middle")
            bottom = ROOM / held
        x, y = place(3e10, 5e10)
        yield text(x, y, "more devices, or --activation_checkpointing and smaller micro-batches", "small", "middle")
        x, y = place(1.15e9, 2e8)
        yield text(x, y, "fewer devices", "small")
        yield f'<rect x="{PLOT_LEFT}" y="{PLOT_TOP}" width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" class="line"/>'
        for power in range(4):
            x, y = place(SPEEDS[0] * 10**power, SIZES[0])
            yield text(x, y + 16, f"{10**power:,}", "small", "middle")
            x, y = place(SPEEDS[0], SIZES[0] * 10**power)
            yield text(x - 6, y + 4, ("100 M", "1 G", "10 G", "100 G")[power], "small", "end")
        middle = PLOT_LEFT + PLOT_WIDTH / 2
        yield text(middle, PLOT_TOP + PLOT_HEIGHT + 36, "GB/s that a device can send", "small", "middle")
        yield text(PLOT_LEFT, PLOT_TOP - 8, "parameters", "small")

    return svg(PLOT_TOP + PLOT_HEIGHT + 46, list(parts()), "Model size against link speed: which strategy fits")


def polygon(points: list[tuple[float, float]], colour: str) -> str:
    return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="{colour}"/>'
