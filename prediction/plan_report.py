"""A plan as text, as a table with a row a setting, and as figures."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from comparison.costs import HOUR, KWH
from comparison.digits import mean_text
from comparison.figures import legend, new_chart
from comparison.tables import EMPTY, Table
from measurement.metrics import goodput, statistical_efficiency
from measurement.pipelines.spans import draw as draw_timeline
from plots import STUDY
from prediction.calibration import Calibration
from prediction.planning import Option, Plan, grown, largest_micro_batches, verdict
from prediction.predict import spans
from prediction.search import command
from prediction.setting import Setting


@dataclass(frozen=True)
class Wanted:
    """What else is to be said about a plan.

    Args:
        samples: to train on.
        price: of a device for an hour.
        noise_scale: gradient noise scale in samples.
        reference_batch: against which statistical efficiency is stated.
        grams: of CO2 for a kWh.
        watts: of a device that trains; None if unknown.
        flags: of every run, besides those of its setting.
    """

    samples: float | None = None
    price: float | None = None
    noise_scale: float | None = None
    reference_batch: int = 16
    grams: float | None = None
    watts: float | None = None
    flags: Sequence[str] = ()

    def seconds(self, option: Option) -> float | None:
        return self.samples / option.rate if self.samples and option.rate else None

    def cost(self, option: Option) -> float | None:
        """In the currency of the price."""
        seconds = self.seconds(option)
        return seconds * self.price * option.setting.devices / HOUR if seconds and self.price else None

    def energy_kwh(self, option: Option) -> float | None:
        seconds = self.seconds(option)
        return seconds * self.watts * option.setting.devices / KWH if seconds and self.watts else None

    def co2_g(self, option: Option) -> float | None:
        energy = self.energy_kwh(option)
        return energy * self.grams if energy and self.grams else None

    def efficiency(self, batch: int) -> float | None:
        return statistical_efficiency(self.noise_scale, batch, self.reference_batch) if self.noise_scale else None


def label(base: str) -> str:
    """A strategy as tables name it."""
    look = STUDY.look(base)
    return look.label if look else base


def details(setting: Setting) -> str:
    """What was searched, in words."""
    words = []
    if setting.pipeline_stages > 1:
        words.append(f"{setting.pipeline_stages} stages, {setting.micro_batches} micro-batch"
                     + "es" * (setting.micro_batches > 1))
        words += [setting.schedule] if setting.base == "torch_pipeline" else []
    else:
        words.append(f"micro-batches of {setting.micro_batch_size}")
    words += [f"groups of {setting.group}"] if setting.group else []
    flags = {"sequence parallel": setting.shares_tokens, "FSDP over replicas": setting.shards_replicas,
             "no reshard": not setting.reshards, "activation checkpointing": setting.recomputes}
    return ", ".join([*words, *(name for name, is_on in flags.items() if is_on)])


def plan_text(calibration: Calibration, plans: Sequence[Plan], wanted: Wanted, links: Sequence[str]) -> str:
    """The tables and their sentences in Markdown."""
    facts, batch = calibration.facts, plans[0].global_batch_size
    lines = [f"# {facts['model']}, {facts['task']}, {facts['precision']}, global batch {batch}", "",
             f"Predicted from a calibration on {facts['hardware']} ({facts['date']})"
             + (f", with {' and '.join(links)} by data sheet." if links else ".")]
    most = max((devices for _, devices, _ in calibration.links), default=1)
    beyond = [str(plan.devices) for plan in plans if plan.devices > most]
    if calibration.warning:
        lines.append(calibration.warning)
    if not calibration.shares_memory:
        lines.append("How far off rates may be was found on CPU processes: no prediction for a GPU has been checked.")
    if beyond and not links:
        lines.append(f"Links among {', '.join(beyond)} devices were not measured: taken to be as fast as among {most}.")
    if (efficiency := wanted.efficiency(batch)) is not None:
        lines.append(f"A sample in this batch advances training {mean_text(efficiency)} times as much as in batches of "
                     f"{wanted.reference_batch}: goodput is that times the throughput.")
    if wanted.grams and not wanted.watts:
        lines.append("Energy and CO2 are not predicted: the calibration's devices do not tell what power they draw.")
    for plan in plans:
        first = next(iter(plan.best.values()))
        lines += ["", f"## {plan.devices} device{'s' * (plan.devices > 1)}", "",
                  verdict(plan.best, plan.band, lambda setting: label(setting.base)), ""]
        lines += [table(plan, wanted), "", f"`{command(first.setting, wanted.flags)}`"] if first.prediction else []
        lines += ["", *not_fitting(plan)] if plan.would_fit else []
    return "\n".join(lines)


def table(plan: Plan, wanted: Wanted) -> str:
    """A line for each strategy of which something fits."""
    options = [option for option in plan.best.values() if option.prediction]
    predictions = [option.prediction for option in options if option.prediction]
    largest = largest_micro_batches(plan.options)
    columns: dict[str, list[Any]] = {
        "strategy": [label(option.setting.base) for option in options],
        "best setting": [details(option.setting) for option in options],
        "samples/s": [range_text(option, plan) for option in options],
        "memory GiB": [f"{option.needed_gib:.3g}" for option in options],
        "largest micro-batch": [largest.get(option.setting.base, EMPTY) for option in options],
        "exposed communication %": [f"{100 * found.exposed_communication_s_per_step / found.step_s:.0f}"
                                    for found in predictions],
        "bubble %": [EMPTY if found.bubble_pct is None else f"{found.bubble_pct:.0f}" for found in predictions]}
    if wanted.samples:
        columns["seconds"] = [mean_text(wanted.seconds(option) or 0) for option in options]
    if wanted.samples and wanted.price:
        columns["price"] = [mean_text(wanted.cost(option) or 0) for option in options]
    if wanted.samples and wanted.watts:
        columns["energy kWh"] = [mean_text(wanted.energy_kwh(option) or 0) for option in options]
    if wanted.samples and wanted.watts and wanted.grams:
        columns["CO2 g"] = [mean_text(wanted.co2_g(option) or 0) for option in options]
    return str(Table([[title, *map(str, cells)] for title, cells in columns.items()]))


def range_text(option: Option, plan: Plan) -> str:
    return mean_text(option.rate, option.rate * plan.band.throughput_pct / 100)


def not_fitting(plan: Plan) -> list[str]:
    """A line for each strategy of which nothing fits: what it needs at least, and what would make it fit."""
    lines = []
    for base, devices in plan.would_fit.items():
        option = plan.best[base]
        where = "more devices do not help; a larger one would"
        if devices:
            batch = grown(plan.global_batch_size, devices)
            where = f"on {devices} devices it would" + f", with a batch of {batch}" * (batch != plan.global_batch_size)
        lines.append(f"- {label(base)} does not fit: {option.needed_gib:.3g} GiB of {plan.memory_gib:.3g} with "
                     f"{details(option.setting)}; {where}")
    return lines


# ---------------------------------------------------------------------- files

def write_rows(path: Path, plans: Sequence[Plan], wanted: Wanted) -> None:
    """A row a setting; predicted values are empty where it does not fit."""
    rows = [row_of(option, plan, wanted) for plan in plans for option in plan.options]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def row_of(option: Option, plan: Plan, wanted: Wanted) -> dict[str, Any]:
    setting, found = option.setting, option.prediction
    rate, share = found.throughput_samples_per_s if found else None, plan.band.throughput_pct / 100
    efficiency = wanted.efficiency(plan.global_batch_size)
    return {"strategy": setting.base, "devices": setting.devices, "global_batch_size": setting.global_batch_size,
            "micro_batch_size": setting.micro_batch_size, "micro_batches": setting.micro_batches,
            "pipeline_stages": setting.pipeline_stages, "schedule": setting.schedule, "replicas": setting.replicas,
            "group": setting.group, "reshard_after_forward": setting.reshards,
            "sequence_parallel": setting.shares_tokens, "shard_replicas": setting.shards_replicas,
            "activation_checkpointing": setting.recomputes, "fits": found is not None,
            "is_best": plan.best[setting.base].setting == setting,
            "throughput_samples_per_s": rate, "throughput_samples_per_s_low": rate and rate * (1 - share),
            "throughput_samples_per_s_high": rate and rate * (1 + share), "step_s": found and found.step_s,
            "exposed_communication_s_per_step": found and found.exposed_communication_s_per_step,
            "bubble_pct": found and found.bubble_pct, "wire_mib_per_step": found and found.wire_mib_per_step,
            "peak_memory_gib": option.needed_gib, "statistical_efficiency": efficiency,
            "goodput_samples_per_s": goodput(rate, efficiency) if rate and efficiency else None,
            "time_to_samples_s": wanted.seconds(option), "price": wanted.cost(option),
            "energy_kwh": wanted.energy_kwh(option), "co2_g": wanted.co2_g(option),
            "command": command(setting, wanted.flags)}


def draw(folder: Path, plans: Sequence[Plan]) -> int:
    """Write the figures; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    charts = {"throughput": throughput_chart(plans), "memory": memory_chart(plans)}
    for name, figure in charts.items():
        figure.savefig(folder / f"plan_{name}.png")
    steps = {name: option for plan in plans for name, option in timelines(plan).items()}
    for name, option in steps.items():
        assert option.prediction
        what = f"{label(option.setting.base)} x {option.setting.devices}, {details(option.setting)}"
        path = folder / f"plan_timeline_{name}.png"
        draw_timeline(spans(option.prediction.timeline), f"{what}: one predicted step", path)
    return len(charts) + len(steps)


def lines_of(plans: Sequence[Plan], fitting: bool) -> dict[str, list[tuple[Plan, Option]]]:
    """By strategy, its best setting on each number of devices."""
    found: dict[str, list[tuple[Plan, Option]]] = {}
    for plan in plans:
        for base, option in plan.best.items():
            if option.prediction or not fitting:
                found.setdefault(base, []).append((plan, option))
    return {base: found[base] for base in STUDY.strategies if base in found}


def devices_axes(title: str, text: str, plans: Sequence[Plan]) -> tuple[Figure, Any]:
    figure, axes = new_chart(title, f"predicted; global batch {plans[0].global_batch_size}", text, 9)
    axes.set_xscale("log", base=2)
    axes.set_xticks([plan.devices for plan in plans], [str(plan.devices) for plan in plans], minor=False)
    axes.set_xlabel("devices")
    return figure, axes


def throughput_chart(plans: Sequence[Plan]) -> Figure:
    """The best setting of each strategy over the number of devices, with the band."""
    figure, axes = devices_axes("throughput", "throughput (samples/s)", plans)
    drawn = {}
    for base, points in lines_of(plans, fitting=True).items():
        rates = [option.rate for _, option in points]
        errors = [option.rate * plan.band.throughput_pct / 100 for plan, option in points]
        drawn[label(base)] = axes.errorbar([plan.devices for plan, _ in points], rates, errors, marker="o", capsize=3,
                                           markersize=4, color=STUDY.strategies[base][1]).lines[0]
    axes.set_ylim(bottom=0)
    legend(figure, drawn)
    return figure


def memory_chart(plans: Sequence[Plan]) -> Figure:
    """What the best settings need on one device, and what it has."""
    figure, axes = devices_axes("memory", "memory of a device (GiB)", plans)
    drawn = {}
    for base, points in lines_of(plans, fitting=False).items():
        devices, needed = [plan.devices for plan, _ in points], [option.needed_gib for _, option in points]
        drawn[label(base)] = axes.plot(devices, needed, marker="o", markersize=4, color=STUDY.strategies[base][1])[0]
    drawn["a device has"] = axes.plot([plan.devices for plan in plans], [plan.memory_gib for plan in plans], "--",
                                      color="0.35")[0]
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    legend(figure, drawn)
    return figure


def timelines(plan: Plan) -> dict[str, Option]:
    """By name, the settings whose steps are drawn: the fastest, and the fastest pipeline."""
    options = [option for option in plan.best.values() if option.prediction]
    pipelines = [option for option in options if option.setting.schedule]
    return {f"{option.setting.base}_{plan.devices}": option for option in (*options[:1], *pipelines[:1])}
