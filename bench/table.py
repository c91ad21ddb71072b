"""bench/README.md from the results in bench/results, so that no number is typed by hand.

    python bench/table.py

One function a benchmark makes its section, with a table or more; `SECTIONS` names their order.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEAD = """# Benchmarks

`make bench` runs the quick ones and writes this page anew; a test compares it with `results/`. \
Ratios are of one run, the
sides taking turns; times are of the machine named or, where none is, of a shared one with two \
cores: read the ratios.

The peers are no requirements of this project. A virtual environment for them:

```sh
python3.11 -m venv .venv-peers
.venv-peers/bin/pip install --constraint constraints.txt torch \
--requirement bench/requirements-peers.txt --editable .
.venv-peers/bin/python bench/peers.py
```
"""

Results = dict[str, Any]
"""What a benchmark wrote to its JSON file."""


def cell(value: Any) -> str:
    """A value as text: numbers of 1,000 and more in whole ones, others with three digits."""
    if value is None:
        return ""
    if isinstance(value, int | float) and abs(value) >= 1000:
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        lines.append("| " + " | ".join(cell(value) for value in row.values()) + " |")
    return "\n".join(lines) + "\n"


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[0].upper() + text[1:]


def threads(count: int) -> str:
    """ "1 thread" or "2 threads"."""
    return f"{count} thread{'s' if count > 1 else ''}"


def prepare(results: Results) -> str:
    """How long the preparation of raw NHANES files takes."""
    rows = [
        {
            "SPXRAW as": kind,
            "MB": run["file_MB"],
            "blows": run["blows"],
            "s": run["seconds"],
            "s row by row": run["seconds_row_by_row"],
            "ratio": run["ratio"],
            "CPU s": run["cpu_seconds"],
            "CPU s row by row": run["cpu_seconds_row_by_row"],
            "CPU ratio": run["cpu_ratio"],
            "peak GB": run["peak_memory_GB"],
            "signals differ by (L/s)": run["largest_difference_L_per_s"],
        }
        for kind, run in results.items()
    ]
    head = (
        "From SPXRAW, DEMO and BMX to `signals_L512.npy` and `metadata_aligned.csv`, "
        "beside `np.fromstring` and `interp1d` row by row; medians of paired rounds.\n\n"
    )
    return head + markdown(rows)


def peer_task(task: Results) -> str:
    """One task of the comparison with peers: its models and their speed."""
    rows = []
    for model in task["rows"]:
        ratios = model["ours_over_this"] or {}
        rows.append(
            {
                "": model["name"],
                "parameters": model["parameters"],
                "MFLOP a curve": model["mflop_per_curve"],
                "curves/s": model["curves_per_s"],
                "this project over it": " / ".join(f"{ratio:.2f}" for ratio in ratios.values()),
            }
        )
    head = f"**{sentence(task['task'])}**, batch {task['batch']}; fastest: {task['winner']}\n\n"
    return head + markdown(rows)


def peers(results: Results) -> str:
    """How fast this project's networks are beside those of other packages."""
    others = "nothing else on the machine"
    if results["machine_shared"]:
        others = "other work on the machine meanwhile"
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        f"{results['device']}, {threads(results['threads'])}, {others}; versions: {versions}. "
        "Peers are not trained: speed, not quality.\n"
    ]
    parts += [peer_task(task) for task in results["tasks"]]
    goals = [
        {
            "": f"{goal['task']}, batch {goal['batch']}: {goal['name']}",
            "aim": goal["goal"],
            "measured": goal["measured"],
            "met": "yes" if goal["met"] else "**no**",
            "against those that do as much": goal["against_those_that_do_as_much"],
        }
        for goal in results["goals"]
    ]
    aims = (
        "Aims (at least so many times the best peer; last column: of those that are "
        "conditioned on the person, or quantise, as this project does):\n\n"
    )
    parts.append(aims + markdown(goals))
    return "\n".join(parts)


def samplers(results: Results) -> str:
    """Quality and speed of the samplers."""
    head = (
        f"{results['people']} people of split test, {results['draws']} draws, "
        f"{results['threads']} thread. CRPS (95 % interval) and spread between draws as ratios to "
        "the default's, curves a second as a ratio to 1,000 ancestral steps. ddpm adds noise of "
        "its own, so that its CRPS has the chance of another seed in it, which the others, all "
        "from the same noise, have not. Few noise levels are laid out for dpmpp.\n\n"
    )
    rows = []
    for run in results["rows"]:
        low, high = run["crps_low_high"]
        rows.append(
            {
                "sampler": run["sampler"],
                "calls": run["calls"],
                "CRPS ratio": f"{run['crps_ratio']:.3f} ({low:.2f} to {high:.2f})",
                "spread ratio": run["spread_ratio"],
                "curves/s": run["curves_per_s"],
                "times DDPM-1000": run["times_ddpm1000"],
            }
        )
    return head + markdown(rows)


def single(results: Results) -> str:
    """How long one patient waits."""
    rows = [
        {
            "": row["what"],
            "CPU ms": row["cpu_ms"],
            "ms": row["ms"],
            "slowest ms": row["slowest_ms"],
            "times": row["times"],
        }
        for row in results["rows"]
    ]
    return f"{threads(results['threads'])}.\n\n" + markdown(rows)


GROWTH_COLUMNS = ("curves", "seconds", "cpu_ms_per_curve", "peak_MB", "file_MB")
"""What is shown of each size; old runs do not have the processor's time."""


def cohort_growth(results: Results) -> str:
    """How time and memory grow with the size of a cohort."""
    parts = []
    for name, run in results.items():
        rows = [
            {column.replace("_", " "): size[column] for column in GROWTH_COLUMNS if column in size}
            for size in run["sizes"]
        ]
        steps = name.removeprefix("steps_")
        head = f"{steps} steps a curve, files of {run['partition']:,} curves\n\n"
        parts.append(head + markdown(rows))
    return "\n".join(parts)


def ablation(results: Results) -> str:
    """What the physics does for generated curves."""
    head = (
        f"{results['people']} people of split test, {results['draws']} draws; "
        f"{results['codec_steps']} steps of the codec, {results['steps']} of the denoiser, "
        f"{results['more_steps']} more of the trained one. 1: by construction, 2: in the loss, "
        "3: steered to each person's FEV1. Acceptable among held-out blows: "
        f"{results['held_out']['acceptable']:.2f}.\n\n"
    )
    rows = [
        {name.replace("_", " "): value for name, value in row.items()} for row in results["rows"]
    ]
    return head + markdown(rows)


def fvc_errors(methods: Results) -> str:
    """A table of the errors of FVC of each method."""
    return markdown(
        [
            {
                "": name,
                "median error (L)": errors["median_abs_l"],
                "mean error (L)": errors["mean_abs_l"],
                "bias (%)": errors["bias_percent"],
            }
            for name, errors in methods.items()
        ]
    )


def coverage_of(results: Results, cuts: list[str]) -> str:
    """How often the 90 % interval covers the true FVC, in groups of people, at each cut."""
    first = results[cuts[0]]
    rows = []
    for group in first["in_90"]:
        if group == "median_width_l":
            continue
        row = {"": group, "people": first["in_90_people_low_high"][group][0]}
        for cut in cuts:
            share = results[cut]["in_90"][group]
            _, low, high = results[cut]["in_90_people_low_high"][group]
            row[cut] = f"{share:.1%} ({100 * low:.0f} to {100 * high:.0f})"
        rows.append(row)
    head = "**True FVC in the 90 % interval** (95 % interval over participants)\n\n"
    return head + markdown(rows)


def recorded_people(table: Results) -> str:
    """What came of recorded manoeuvres."""
    rows = []
    for name, row in table.items():
        rows.append(
            {
                "": name,
                "manoeuvres (people)": f"{row['manoeuvres']:.0f} ({row['people']:.0f})",
                "in 90 % interval": f"{row['in 90 %']:.1%} "
                f"({100 * row['from']:.0f} to {100 * row['to']:.0f})",
                "bias (%)": row["bias %"],
                "median error (mL)": row["median error mL"],
                "ridge (mL)": row["ridge mL"],
                "exponential (mL)": row["exponential mL"],
                "best extrapolation (mL)": row["best extrapolation mL"],
                "to extrapolation": row["to extrapolation"],
            }
        )
    head = (
        "**Recorded manoeuvres of healthy adults**, cut after time zero; FVC of those with a "
        "plateau, FEV3 of all that last so long (95 % interval over people). Intervals are as "
        "wide as simulated blows and recordings of other people ask for; the ridge regression "
        "learns from recordings of other people too. The simulator's law of shapes is fitted to "
        "these people.\n\n"
    )
    return head + markdown(rows)


def obstruction(results: Results, cuts: list[str]) -> str:
    """Coverage and errors of FVC of the obstructed, at each cut."""
    rows = []
    for cut in cuts:
        for group, scores in results[cut]["obstruction"].items():
            rows.append(
                {
                    "": f"{sentence(cut)}, {group}",
                    "blows": scores["manoeuvres"],
                    "people": scores["people"],
                    "in 90 % interval": f"{scores['in 90 %']:.1%}",
                    "bias (%)": scores["bias %"],
                    "median error (mL)": scores["median error mL"],
                }
            )
    return "**Simulated blows with obstruction**, FVC\n\n" + markdown(rows)


def recorded_waveforms(recorded: Results, cuts: list[str]) -> list[str]:
    """What came of the ATS waveforms: given whole, and at each cut."""
    changes = [abs(blow["change_ml"]) for blow in recorded["given whole"].values()]
    near = sum(change < 10 for change in changes)
    parts = [
        f"**Recorded ATS24 waveforms** ({', '.join(recorded['files'])}), of nobody known; "
        f"given whole {near} of {len(changes)} come back within 10 mL, "
        f"the farthest {max(changes):.0f} mL off.\n"
    ]
    for cut in cuts:
        inside = sum(recorded[cut]["inside_90"])
        trusted = sum(recorded[cut]["trusted"])
        parts.append(
            f"{sentence(cut)}: {inside} of {len(changes)} in the 90 % interval, "
            f"{trusted} trusted\n\n" + fvc_errors(recorded[cut]["fvc"])
        )
    return parts


def reconstruction(results: Results) -> str:
    """How well forced expirations that stopped early are completed."""
    cuts = [name for name in results if name.startswith("cut at")]
    parts = [
        f"{results['blows']:,} whole simulated blows of split test, {results['draws']} draws; "
        f"100 draws of one take {results['seconds_for_100_draws']:.2f} s.\n"
    ]
    parts += [f"**{sentence(cut)}**, FVC\n\n" + fvc_errors(results[cut]["fvc"]) for cut in cuts]
    parts.append(coverage_of(results, cuts))
    right = ", ".join(f"{results[cut]['right_would_hold_of_obstruction']:.0%}" for cut in cuts)
    parts.append(
        "Whether a true FEV1/FVC is below the LLN hangs on the true FVC; of people chosen so, "
        "90 % intervals that are right for everyone cover less than 90 %: with draws of the model "
        f"itself in place of the truth, {right} at the cuts in turn.\n"
    )
    whole = results["given whole"]
    parts.append(
        f"Of {whole['blows']} blows given whole {whole['within_10_ml']:.0%} come back within "
        "10 mL; of those taken as whole, "
        f"{whole['within_10_ml_of_those_taken_as_whole']:.0%}.\n"
    )
    if "obstruction" in results[cuts[0]]:
        parts.append(obstruction(results, cuts))
    if "recorded" in results:
        parts.append(recorded_people(results["recorded"]))
    if recorded := results.get("ats24"):
        parts += recorded_waveforms(recorded, cuts)
    return "\n".join(parts)


SECTIONS: dict[str, Callable[[Results], str]] = {
    "prepare": prepare,
    "peers": peers,
    "samplers": samplers,
    "single": single,
    "cohort_growth": cohort_growth,
    "ablation": ablation,
    "reconstruction": reconstruction,
}


def page() -> str:
    """The whole page: a section for each benchmark that has results."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        path = HERE / "results" / f"{name}.json"
        if path.is_file():
            results = json.loads(path.read_text(encoding="utf-8"))
            title = name.replace("_", " ")
            parts.append(f"## {title}\n\n`bench/{name}.py`. {section(results)}")
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")
