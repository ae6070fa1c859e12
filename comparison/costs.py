"""Money and energy of runs, from a price and a carbon intensity that the user gives."""

from dataclasses import replace

import numpy as np

from comparison.runs import Run
from comparison.study import Metric, Study
from comparison.targets import TIMES

TITLE = "Money and energy"
HOUR, KWH = 3600, 3.6e6  # seconds; joules
COST, COST_TO_TARGET = Metric("cost", "price"), Metric("cost_to_target", "price to target")
ENERGY = Metric("energy_kwh", "energy", "kWh")
ENERGY_TO_TARGET = Metric("energy_to_target_kwh", "energy to target", "kWh")
CO2, CO2_TO_TARGET = Metric("co2_g", "CO2", "g"), Metric("co2_to_target_g", "CO2 to target", "g")


def with_costs(study: Study, price: float | None, grams: float | None) -> Study:
    """The study with a table of what was asked for.

    Args:
        price: of a device for an hour, in any currency.
        grams: of CO2 for a kWh.
    """
    metrics = [COST, COST_TO_TARGET] if price else []
    metrics += [ENERGY, ENERGY_TO_TARGET] if price or grams else []
    metrics += [CO2, CO2_TO_TARGET] if grams else []
    return replace(study, tables={**study.tables, TITLE: metrics}) if metrics else study


def add_costs(runs: list[Run], price: float | None, grams: float | None) -> None:
    """Give runs the columns of that table; nothing where time, energy or power were not measured.

    A run is paid for from its command to its summary, and to its target for the seconds until then. Energy to the
    target is mean power of all GPUs x these seconds.
    """
    for run in runs:
        row = run.summary
        to_target, devices = row.get(TIMES[0], np.nan), float(row["devices"])
        energy, power = (row.get(name, np.nan) for name in ("energy_j", "power_w"))
        found = {COST: (price or np.nan) * devices * row["runtime_s"] / HOUR,
                 COST_TO_TARGET: (price or np.nan) * devices * to_target / HOUR,
                 ENERGY: energy / KWH, ENERGY_TO_TARGET: power * devices * to_target / KWH,
                 CO2: (grams or np.nan) * energy / KWH,
                 CO2_TO_TARGET: (grams or np.nan) * power * devices * to_target / KWH}
        row |= {metric.column: value for metric, value in found.items()}
