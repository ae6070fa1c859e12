"""Format numbers with as many digits as their spread supports."""

import math

MOST_DECIMALS = 9


def leading_digit(value: float, digits: int) -> tuple[str, int]:
    """First digit and power of ten of a value after rounding to `digits` significant digits."""
    mantissa, exponent = f"{abs(value):.{digits - 1}e}".split("e")
    return mantissa[0], int(exponent)


def decimals(value: float, half_width: float) -> int:
    """Number of decimals to show for a value with this half-width of its interval; negative left of the point.

    The last digit shown is the first significant digit of the half-width, or the second if the first is 1. At most
    four significant digits of the value are shown, and three if the half-width is NaN (spread unknown).
    """
    digits = 3 if math.isnan(half_width) else 4
    limits = [MOST_DECIMALS]
    if value:
        limits.append(digits - 1 - leading_digit(value, digits)[1])
    if half_width > 0:
        first, exponent = leading_digit(half_width, 2)
        limits.append((first == "1") - exponent)
    return min(limits) if len(limits) > 1 else 0


def number(value: float, shown: int, sign: str = "") -> str:
    return f"{round(value, shown):{sign}z.{max(shown, 0)}f}"


def half_width_text(half_width: float, shown: int) -> str:
    """`0` only for zero: a half-width that would round to zero is shown as one unit of the last digit."""
    return number(max(half_width, 10.0**-shown), shown) if half_width else "0"


def mean_text(value: float, half_width: float = math.nan) -> str:
    """`178.5 ± 1.4`, or `179` without an interval."""
    shown = decimals(value, half_width)
    return number(value, shown) + ("" if math.isnan(half_width) else f" ± {half_width_text(half_width, shown)}")


def interval_text(value: float, low: float, high: float) -> str:
    """`0.87 (0.82 to 0.93)`; without an upper end, which is then NaN, `90 (60 to ∞)`."""
    is_bounded = not math.isnan(high)
    shown = decimals(value, (high - low) / 2 if is_bounded else value - low)
    return f"{number(value, shown)} ({number(low, shown)} to {number(high, shown) if is_bounded else '∞'})"


BEYOND_PERCENT = 1000  # larger changes are not shown in full: their baseline is close to zero


def change_text(change: float, half_width: float, differs: bool) -> str:
    """`(-18.0 ± 1.2%*)`, or `(-18.0%)` without an interval; `*` marks a significant change."""
    if change > BEYOND_PERCENT:
        return f"(> +{BEYOND_PERCENT}%{'*' if differs else ''})"
    if half_width > BEYOND_PERCENT:
        return f"({number(change, min(decimals(change, math.nan), 0), '+')} ± > {BEYOND_PERCENT}%)"
    shown = decimals(change, half_width)
    if math.isnan(half_width):
        return f"({number(change, min(shown, 1), '+')}%)"
    return f"({number(change, shown, '+')} ± {half_width_text(half_width, shown)}%{'*' if differs else ''})"
