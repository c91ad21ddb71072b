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
    """Rows with the same keys as a Markdown table; none are nothing."""
    if not rows:
        return ""
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
    return head + markdown(rows) + _beside_ancestral(results.get("beside_ancestral"))


def _beside_ancestral(found: Results | None) -> str:
    """The default beside 50 ancestral steps."""
    if found is None:
        return ""
    low, high = found["crps_low_high"]
    return (
        f"\nOn {found['people']} people with {found['draws']} draws the default's CRPS is "
        f"{found['crps_ratio']:.3f} ({low:.3f} to {high:.3f}) times that of 50 ancestral steps, "
        f"its spread {found['spread_ratio']:.3f} times.\n"
    )


def titled(rows: list[Results], columns: dict[str, str]) -> list[Results]:
    """The rows with their columns by title; columns: the name of each by its title."""
    return [{title: row[name] for title, name in columns.items()} for row in rows]


def single(results: Results) -> str:
    """How long one patient waits."""
    columns = {
        "": "what",
        "CPU ms": "cpu_ms",
        "ms": "ms",
        "slowest ms": "slowest_ms",
        "times": "times",
    }
    return f"{threads(results['threads'])}.\n\n" + markdown(titled(results["rows"], columns))


def measured(rows: list[Results], columns: dict[str, str]) -> str:
    """The rows that were measured, columns by their titles; below them why others failed."""
    good = [row for row in rows if "failed" not in row]
    parts = [markdown(titled(good, columns))]
    for row in rows:
        if "failed" in row:
            what = ", ".join(cell(value) for name, value in row.items() if name != "failed")
            parts.append(f"Not measured{': ' if what else ''}{what} ({row['failed']}).\n")
    return "\n".join(part for part in parts if part)


APART = {"flow (L/s)": "difference_L_per_s", "FVC (mL)": "difference_fvc_mL"}
"""Columns of the differences between CPU and device."""
GPU_TABLES = {
    "sampling": (
        "**Sampling alone**, differences from the CPU",
        {
            "": "what",
            "batch": "batch",
            "curves/s": "curves_per_s",
            "first call (s)": "first_call_s",
            **APART,
        },
    ),
    "same_cohort": (
        "**The same cohort on CPU and device**; others: accepted on one, drawn again on the other",
        {"curves": "curves", **APART, "others": "others"},
    ),
    "generate": (
        "**`generate`**, indices and z-scores included",
        {
            "curves": "curves",
            "batch": "batch",
            "s": "seconds",
            "curves/s": "curves_per_s",
            "GB on the device": "device_GB",
        },
    ),
    "training": (
        "**Training**: steps/s through `train`, and of loss, gradient and optimiser alone",
        {
            "": "network",
            "batch": "batch",
            "steps/s": "steps_per_s",
            "alone": "steps_per_s_alone",
        },
    ),
    "replayed": (
        "**Training with steps replayed as a CUDA graph**: steps/s through `train`",
        {"": "network", "batch": "batch", "steps/s": "steps_per_s"},
    ),
}
"""The title and columns of each table of the GPU's benchmark."""
NO_GPU = (
    "Not measured: it needs a GPU. `python bench/gpu.py` runs for at most five minutes, and writes "
    "`bench/results/gpu.json`.\n"
)


def stages_of(stages: Results) -> str:
    """Where the time of `generate` goes."""
    head = "**Stages of `generate`**, each alone\n\n"
    if "failed" in stages:
        return head + measured([stages], {})
    rows = [{"": name, "ms": 1000 * seconds} for name, seconds in stages["seconds"].items()]
    size = f"{stages['curves']:,} curves in batches of {stages['batch']:,}"
    return head.replace("each", f"{size}, each") + markdown(rows)


def gpu(results: Results) -> str:
    """What one GPU does, beside what was aimed at."""
    versions = [f"{name} {version}" for name, version in results["versions"].items() if version]
    size = " **Toy sizes, which show nothing but that it works.**" if results["toy"] else ""
    minutes = results["seconds"] / 60
    parts = [f"{results['device']}; {', '.join(versions)}; {minutes:.1f} minutes.{size}\n"]
    for name, (title, columns) in GPU_TABLES.items():
        rows = results[name] if isinstance(results[name], list) else [results[name]]
        parts.append(f"{title}\n\n{measured(rows, columns)}")
    parts.append(stages_of(results["stages"]))
    aims = [
        {
            "": goal["what"],
            "aim": goal["goal"],
            "measured": goal["measured"],
            "met": "yes" if goal["met"] else "**no**",
        }
        for goal in results["goals"]
    ]
    parts.append("**Aims**\n\n" + markdown(aims))
    return "\n".join(parts)


def training(results: Results) -> str:
    """How long a training step takes on cores of which another program holds one."""
    columns = {
        "": "model",
        "threads": "threads",
        "ms alone": "ms_alone",
        "to spinning": "alone_over_usual",
        "ms, a core taken": "ms_core_taken",
        "to alone": "core_taken_over_alone",
        "to spinning alone": "core_taken_over_usual",
    }
    head = (
        f"{results['cores']} cores, batch {results['batch']}, medians of {results['rounds']} "
        "rounds. How threads wait for one another changes no number that is computed; how many "
        "they are changes its last digits.\n\n"
    )
    return head + markdown(titled(results["rows"], columns))


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
        parts.append(head + markdown(rows) + straightness(run))
        if "workers" in run:
            parts.append(shared_out(run["workers"]))
    return "\n".join(parts)


def straightness(run: Results) -> str:
    """How straight the time is, and how flat the memory, in a sentence; "" of old runs."""
    said = []
    if fit := run.get("fit"):
        said.append(
            f"{fit['start_s']:.2f} s and {fit['ms_per_curve']:.3g} ms a curve of the processor's "
            f"time fit all sizes within {fit['misfit']:.1%}"
        )
    if ratio := run.get("largest_over_ten_thousand"):
        said.append(
            f"the largest takes {ratio['cpu_ms_per_curve']:.2f} times the time for a curve, and "
            f"{ratio['peak_MB']:.2f} times the memory, of 10,000 curves"
        )
    return f"\n{sentence('; '.join(said))}.\n" if said else ""


WORKERS_GOAL = 1.7
"""Times one worker that two should be as fast."""


def shared_out(results: Results) -> str:
    """What more Dask workers do for one cohort."""
    rows = [
        {
            "workers": row["workers"],
            "torch's threads each": row["torch_threads"],
            "curves": row["curves"],
            "files": row["partitions"],
            "s": row["seconds"],
            "curves/s": row["curves_per_s"],
            "peak MB of a worker": row["peak_MB"],
            "MB more than after its first file": row["grown_MB"],
        }
        for row in results["rows"]
    ]
    times = results["times_one_worker"]
    head = f"Dask workers of one thread; {times:.2f} times one worker (aim for two: {WORKERS_GOAL})"
    return f"{head}\n\n{markdown(rows)}"


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
    return head + markdown(rows) + turns(results.get("turns", []))


def turns(rows: list[Results]) -> str:
    """The codec's components turned at random and so that each latent has a window."""
    if not rows:
        return ""
    units = {"fvc": (1000, "mL"), "fev1": (1000, "mL"), "pef": (1, "L/s"), "fef2575": (1, "L/s")}
    table = []
    for row in rows:
        line = {"turn": row["turn"]}
        for index, (factor, unit) in units.items():
            errors = [cell(factor * row[f"{index}_{what}"]) for what in ("median", "p95")]
            line[f"{index} ({unit})"] = " / ".join(errors)
        line |= {"codes used": row["used"], "perplexity": row["perplexity"]}
        line |= {"validation loss": row["validation_loss"], "trees (AUC)": row["trees_auc"]}
        line |= {f"CRPS {index}": row[f"crps_{index}"] for index in units}
        table.append(line)
    head = (
        "\nThe codec's components turned at random, or so that each latent has a window of the "
        "curve: small runs with the same bits, steps and seeds. Errors of the codec on split test "
        "(median / 95th percentile), loss of the denoiser on split val, and the indices of what is "
        "drawn.\n\n"
    )
    return head + markdown(table)


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


def codec_on_recordings(results: Results) -> str:
    """Errors of the codec on recorded manoeuvres and on others."""
    sizes = {"recorded": results["acceptable"], **results["codec_curves"]}
    rows = []
    for name in results["codec"]["recorded"]:
        row = {"": name}
        for curves, errors in results["codec"].items():
            both = (errors[name]["median"], errors[name]["95 %"])
            row[f"{curves} (n = {sizes[curves]:,})"] = " / ".join(cell(value) for value in both)
        rows.append(row)
    return "**Codec**, absolute error: median / 95th percentile\n\n" + markdown(rows)


def shapes_at_equal_indices(results: Results) -> str:
    """Where recorded shapes lie among those drawn for the same people."""
    rows = []
    for comparison, table in results["ranks"].items():
        for shape, row in table.items():
            of_chance = (row["chance_outside_low"], row["chance_outside_high"])
            chance_rank = (row["chance_rank_low"], row["chance_rank_high"])
            rows.append(
                {
                    "": comparison,
                    "shape": shape,
                    "outside": f"{row['outside']:.0%}",
                    "a right model": f"{row['expected']:.0%}",
                    "95 % of chance": f"{of_chance[0]:.0%} to {of_chance[1]:.0%}",
                    "mean rank": f"{row['rank']:.2f}",
                    "95 % of chance, rank": f"{chance_rank[0]:.2f} to {chance_rank[1]:.2f}",
                    "median recorded": row["median_recorded"],
                    "median drawn": row["median_simulated"],
                }
            )
    head = (
        f"**Shapes of {results['best']} recorded people's best manoeuvres among {results['kept']} "
        f"draws** steered to the same FVC, FEV1 and PEF, of {results['draws']} each those nearest "
        "in BEV/FVC, or the first ones (plain): share outside the 5-95 % range of the draws, and "
        "mean rank\n\n"
    )
    return head + markdown(rows)


JUDGES = {
    "trees": "trees",
    "trees_with_noise": "trees, device noise added",
    "network": "network",
    "network_with_noise": "network, device noise added",
    "trees_chance_mean": "trees, chance (mean)",
    "trees_chance_largest": "trees, chance (largest)",
}
"""How the judges are called in the table."""


def told_apart(results: Results) -> str:
    """AUCs of the judges, and how near the draws are in BEV."""
    rows = []
    for comparison, found in results["apart"].items():
        row = {"": comparison}
        row |= {title: found.get(name) for name, title in JUDGES.items()}
        row["median of ln BEV/FVC over the person's"] = results["bev"][comparison]["bev_median"]
        rows.append(row)
    head = (
        "**Told apart**: AUC of random forests on shapes and of a convolutional network on curves, "
        "on people whom they have not seen\n\n"
    )
    return head + markdown(rows)


def learnt(results: Results) -> str:
    """What was learnt from which curves about recorded ones."""
    rows = []
    for task, table in results["use"].items():
        for teacher, row in table.items():
            ends = ""
            if "difference" in row:
                low, high = row["difference_low"], row["difference_high"]
                ends = f"{row['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
            rows.append(
                {
                    "": task,
                    "learnt from": teacher,
                    "curves": row["curves"],
                    "score (95 % interval)": (
                        f"{row['score']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
                    ),
                    "minus that of recorded": ends,
                }
            )
    head = (
        f"**Utility** on {results['whole']} whole recorded manoeuvres, weak efforts on all "
        f"{results['trials']} trials: mean absolute error in L or L/s, AUROC of weak efforts\n\n"
    )
    return head + markdown(rows)


def aims_table(aims: list[Results]) -> list[Results]:
    """Numbers that are aimed at, and whether they are met."""
    return [
        {
            "": aim["title"],
            "from": aim["low"],
            "to": aim["high"],
            "measured": aim["value"],
            "met": "yes" if aim["low"] <= aim["value"] <= aim["high"] else "**no**",
        }
        for aim in aims
    ]


def recorded(results: Results) -> str:
    """The models on recorded manoeuvres."""
    parts = [
        f"{results['people']} recorded people, {results['trials']} trials, "
        f"{results['acceptable']} acceptable; seed {results['seed']}.\n",
        codec_on_recordings(results),
        shapes_at_equal_indices(results),
        told_apart(results),
        learnt(results),
        "**Aims**\n\n" + markdown(aims_table(results["aims"])),
    ]
    return "\n".join(parts)


def within_sessions(name: str, numbers: Results) -> str:
    """How far trials of a session are apart, beside other sessions."""
    rows = []
    for choice, table in numbers["within"].items():
        for index, row in table.items():
            low, high = row["ratio_low"], row["ratio_high"]
            middle = (row["median_ratio_low"], row["median_ratio_high"])
            rows.append(
                {
                    "": f"{choice}: {index}",
                    "SD generated": row["sd"],
                    f"SD {name}": row["sd_other"],
                    "ratio (95 % interval)": f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})",
                    "ratio of medians": (
                        f"{row['median_ratio']:.2f} ({middle[0]:.2f} to {middle[1]:.2f})"
                    ),
                }
            )
    counts = numbers["counts"]
    sizes = ", ".join(
        f"{counts[kind]['sessions']:,} {title} sessions of {counts[kind]['people']} people"
        for kind, title in (("made", "generated"), ("other", name))
    )
    head = f"**Beside {name} sessions** ({sizes}): SD within a session\n\n"
    return head + markdown(rows)


def pairs_told_apart(name: str, numbers: Results) -> str:
    """AUCs of trees that see one trial, two, or their differences; and of chance."""
    rows = []
    for title, found in (
        (f"generated and {name}", numbers["apart"]),
        (f"two halves of the {name}", numbers["apart_chance"]),
    ):
        for choice, areas in found.items():
            row = {
                "": f"{title}, {choice}",
                "pairs": f"{areas['pairs']} and {areas['pairs_other']}",
            }
            for seen in ("single", "pair", "differences"):
                area = areas.get(seen)
                row[seen] = (
                    f"{area['auc']:.2f} ({area['low']:.2f} to {area['high']:.2f})" if area else ""
                )
            rows.append(row)
    near = numbers["copies"]
    copies = (
        f"Nearest other trial of the session: median {near['made 50%']:.0f} mL, 1 % "
        f"{near['made 1%']:.0f} mL ({name} {near['other 50%']:.0f} and {near['other 1%']:.0f}); "
        f"{near['near_copies']:.1%} are nearer than 99 % of the {name} ones.\n"
    )
    return f"**Trees that see two trials**, AUC, {name}\n\n" + markdown(rows) + "\n" + copies


def repeats_told_apart(given: Results) -> str:
    """AUCs of trees that see a simulated trial and what takes the place of its repeat."""
    rows = []
    for way, areas in given.items():
        row = {"the other trial": way, "pairs": areas["pairs"]}
        for seen in ("single", "pair", "differences"):
            area = areas.get(seen)
            row[seen] = (
                f"{area['auc']:.2f} ({area['low']:.2f} to {area['high']:.2f})" if area else ""
            )
        rows.append(row)
    head = "**Trees that see a known trial and another of its person**, AUC, simulated\n\n"
    return head + markdown(rows) if rows else ""


def letters_and_grades(kinds: Results) -> str:
    """NHANES's letters and effort grades of generated sessions, beside published ones."""
    others = {(r["index"], r["test"], r["letter"]): r["share"] for r in kinds["other"]["letters"]}
    rows = [
        {
            "": f"{row['index']}, {row['test']}, {row['letter']}",
            "generated (%)": row["share"],
            "compared with (%)": others.get((row["index"], row["test"], row["letter"])),
            "NHANES (%)": row["published"],
        }
        for row in kinds["made"]["letters"]
    ]
    for grade, row in kinds["made"]["efforts"].items():
        other = kinds["other"]["efforts"].get(grade, {})
        rows.append(
            {
                "": f"effort {grade}",
                "generated (%)": row["share"],
                "compared with (%)": other.get("share"),
                "NHANES (%)": row["published"],
            }
        )
    rules = [
        {
            "": f"rules see: {name}",
            "generated (%)": share,
            "compared with (%)": kinds["other"]["rules"][name],
            "NHANES (%)": None,
        }
        for name, share in kinds["made"]["rules"].items()
    ]
    return "**Letters, effort grades, and what rules see**\n\n" + markdown(rows + rules)


def after_bronchodilator(results: Results) -> str:
    """FEV1's change in second tests of people whom NHANES would have invited to one."""
    tables = {
        "generated for the same people": results.get("generated_changes", {}),
        "NHANES": results.get("published_changes", {}),
    }
    for name, found in results["comparisons"].items():
        for kind, title in (("made", f"generated, as {name}"), ("other", name)):
            tables[title] = found["kinds"][kind]["bronchodilator"]
    rows = [
        {
            "": f"{kind}, {group}",
            "people": row["people"],
            "median % (95 % interval)": (
                f"{row['percent median']:.1f} "
                f"({row['percent low']:.1f} to {row['percent high']:.1f})"
            ),
            "5 to 95 %": f"{row['percent 5 %']:.1f} to {row['percent 95 %']:.1f}",
            "median mL": row["ml median"],
        }
        for kind, table in tables.items()
        for group, row in table.items()
    ]
    return "**FEV1 after a bronchodilator**\n\n" + markdown(rows) if rows else ""


def order_of_trials(results: Results) -> str:
    """Whether the best comes late, in each kind of sessions."""
    rows = []
    for name, found in results["comparisons"].items():
        for kind, title in (("made", f"generated, as {name}"), ("other", name)):
            for index in ("fvc", "fev1", "pef"):
                row = found["kinds"][kind]["order"][index]
                rows.append({"": f"{title}: {index}"} | row)
    head = (
        "**Order**: where the best trial of a session is, losses per trial (%; positive where "
        "people tire), and how much more alike neighbours are than independent trials\n\n"
    )
    return head + markdown(rows)


def sessions(results: Results) -> str:
    """Whole tests: generated sessions beside simulated and recorded ones."""
    made = "Simulated sessions of another seed stand in for generated ones. "
    parts = [
        f"{made if results['stand_in'] else ''}Seed {results['seed']}. "
        f"Left out: {', '.join(results['left_out']) or 'nothing'}.\n"
    ]
    for place, (name, found) in enumerate(results["comparisons"].items()):
        parts += [within_sessions(name, found), pairs_told_apart(name, found)]
        if place == 0:
            parts.append(repeats_told_apart(results.get("given_first", {})))
            parts.append(letters_and_grades(found["kinds"]))
    parts += [after_bronchodilator(results), order_of_trials(results)]
    rows = [
        {
            "": f"{row['fault']}, {row['tried']}",
            "learnt from": row["learnt from"],
            "cases": f"{row['cases']} of {row['trials']}",
            "AUC (95 % interval)": f"{row['auc']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
        }
        for row in results["classifier"]
    ]
    parts.append(
        "**Classifier of faults**, learnt from generated trials, where a rule says what is true; "
        "coughs are planted\n\n" + markdown(rows)
    )
    if times := results["speed"]:
        rows = [
            {
                "patients at once": row["patients"],
                "a test of eight (ms)": row["test_cpu_ms"],
                "eight curves (ms)": row["curves_cpu_ms"],
                "ratio": row["ratio"],
            }
            for row in times
        ]
        head = f"**Speed** of a patient ({threads(times[0]['threads'])}, medians, in turn)\n\n"
        parts.append(head + markdown(rows))
    parts.append("**Aims**\n\n" + markdown(aims_table(results["aims"])))
    return "\n".join(part for part in parts if part)


SECTIONS: dict[str, Callable[[Results], str]] = {
    "prepare": prepare,
    "peers": peers,
    "samplers": samplers,
    "single": single,
    "training": training,
    "cohort_growth": cohort_growth,
    "gpu": gpu,
    "ablation": ablation,
    "reconstruction": reconstruction,
    "recorded": recorded,
    "sessions": sessions,
}


UNMEASURED = {"gpu": NO_GPU}
"""What is said of a benchmark without results; of others nothing."""


def page(folder: Path = HERE / "results") -> str:
    """The whole page: a section for each benchmark that has results in `folder`."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        path = folder / f"{name}.json"
        said = UNMEASURED.get(name)
        if path.is_file():
            said = section(json.loads(path.read_text(encoding="utf-8")))
        if said:
            parts.append(f"## {name.replace('_', ' ')}\n\n`bench/{name}.py`. {said}")
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")
