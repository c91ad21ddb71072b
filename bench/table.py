"""bench/README.md from the results in bench/results: a table for each benchmark, no number typed by hand.

python bench/table.py
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEAD = """# Benchmarks

`make bench` runs the quick ones and writes this page anew; a test compares it with `results/`. Ratios are of one run, the
sides taking turns; times are of the machine named or, where none is, of a shared one with two cores: read the ratios.

The peers are no requirements of this project. A virtual environment for them:

```sh
python3.11 -m venv .venv-peers
.venv-peers/bin/pip install --constraint constraints.txt torch --requirement bench/requirements-peers.txt --editable .
.venv-peers/bin/python bench/peers.py
```
"""


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table; numbers with three digits or so."""
    text = lambda v: (
        ""
        if v is None
        else f"{v:,.0f}"
        if isinstance(v, (int, float)) and abs(v) >= 1000
        else f"{v:.3g}"
        if isinstance(v, float)
        else str(v)
    )
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return (
        "\n".join(lines + ["| " + " | ".join(text(v) for v in row.values()) + " |" for row in rows])
        + "\n"
    )


def prepare(d: dict[str, Any]) -> str:
    rows = [
        {
            "SPXRAW as": kind,
            "MB": r["file_MB"],
            "blows": r["blows"],
            "s": r["seconds"],
            "s row by row": r["seconds_row_by_row"],
            "ratio": r["ratio"],
            "CPU s": r["cpu_seconds"],
            "CPU s row by row": r["cpu_seconds_row_by_row"],
            "CPU ratio": r["cpu_ratio"],
            "peak GB": r["peak_memory_GB"],
            "signals differ by (L/s)": r["largest_difference_L_per_s"],
        }
        for kind, r in d.items()
    ]
    return (
        "From SPXRAW, DEMO and BMX to `signals_L512.npy` and `metadata_aligned.csv`, beside `np.fromstring` and `interp1d` row by row; medians of paired rounds.\n\n"
        + markdown(rows)
    )


def peers(d: dict[str, Any]) -> str:
    out = [
        f"{d['device']}, {d['threads']} thread{'s' if d['threads'] > 1 else ''}, {'other work on the machine meanwhile' if d['machine_shared'] else 'nothing else on the machine'}; versions: {', '.join(f'{k} {v}' for k, v in d['versions'].items())}. Peers are not trained: speed, not quality.\n"
    ]
    for t in d["tasks"]:
        rows = []
        for row in t["rows"]:
            ratios = row["ours_over_this"] or {}
            rows.append(
                {
                    "": row["name"],
                    "parameters": row["parameters"],
                    "MFLOP a curve": row["mflop_per_curve"],
                    "curves/s": row["curves_per_s"],
                    "this project over it": " / ".join(f"{r:.2f}" for r in ratios.values()),
                }
            )
        out.append(
            f"**{t['task'][0].upper()}{t['task'][1:]}**, batch {t['batch']}; fastest: {t['winner']}\n\n"
            + markdown(rows)
        )
    out.append(
        "Aims (at least so many times the best peer; last column: of those that are told who it is, or quantise, as this project does):\n\n"
        + markdown(
            [
                {
                    "": f"{g['task']}, batch {g['batch']}: {g['name']}",
                    "aim": g["goal"],
                    "measured": g["measured"],
                    "met": "yes" if g["met"] else "**no**",
                    "against those that do as much": g["against_those_that_do_as_much"],
                }
                for g in d["goals"]
            ]
        )
    )
    return "\n".join(out)


def samplers(d: dict[str, Any]) -> str:
    head = f"{d['people']} people of split test, {d['draws']} draws, {d['threads']} thread. CRPS (95 % interval) and spread between draws as ratios to the default's, curves a second as a ratio to 1,000 ancestral steps. ddpm adds noise of its own, so that its CRPS has the chance of another seed in it, which the others, all from the same noise, have not. Few noise levels are laid out for dpmpp.\n\n"
    return head + markdown(
        [
            {
                "sampler": r["sampler"],
                "calls": r["calls"],
                "CRPS ratio": f"{r['crps_ratio']:.3f} ({r['crps_low_high'][0]:.2f} to {r['crps_low_high'][1]:.2f})",
                "spread ratio": r["spread_ratio"],
                "curves/s": r["curves_per_s"],
                "times DDPM-1000": r["times_ddpm1000"],
            }
            for r in d["rows"]
        ]
    )


def single(d: dict[str, Any]) -> str:
    return f"{d['threads']} thread{'s' if d['threads'] > 1 else ''}.\n\n" + markdown(
        [
            {
                "": r["what"],
                "CPU ms": r["cpu_ms"],
                "ms": r["ms"],
                "slowest ms": r["slowest_ms"],
                "times": r["times"],
            }
            for r in d["rows"]
        ]
    )


def ablation(d: dict[str, Any]) -> str:
    head = f"{d['people']} people of split test, {d['draws']} draws; {d['codec_steps']} steps of the codec, {d['steps']} of the denoiser, {d['more_steps']} more of the trained one. 1: by construction, 2: in the loss, 3: steered to each person's FEV1. Acceptable among held-out blows: {d['held_out']['acceptable']:.2f}.\n\n"
    return head + markdown([{k.replace("_", " "): v for k, v in r.items()} for r in d["rows"]])


def reconstruction(d: dict[str, Any]) -> str:
    out = [
        f"{d['blows']:,} whole simulated blows of split test, {d['draws']} draws; 100 draws of one take {d['seconds_for_100_draws']:.2f} s.\n"
    ]
    errors = lambda fvc: markdown(
        [
            {
                "": name,
                "median error (L)": v["median_abs_l"],
                "mean error (L)": v["mean_abs_l"],
                "bias (%)": v["bias_percent"],
            }
            for name, v in fvc.items()
        ]
    )
    cuts = [k for k in d if k.startswith("cut at")]
    for cut in cuts:
        out.append(f"**{cut[0].upper()}{cut[1:]}**, FVC\n\n" + errors(d[cut]["fvc"]))
    groups = [g for g in d[cuts[0]]["in_90"] if g != "median_width_l"]
    inside = lambda cut, g: (
        f"{d[cut]['in_90'][g]:.1%} ({100 * d[cut]['in_90_people_low_high'][g][1]:.0f} to {100 * d[cut]['in_90_people_low_high'][g][2]:.0f})"
    )
    people = lambda g: d[cuts[0]]["in_90_people_low_high"][g][0]
    out.append(
        "**True FVC in the 90 % interval** (95 % interval over participants)\n\n"
        + markdown(
            [{"": g, "people": people(g), **{cut: inside(cut, g) for cut in cuts}} for g in groups]
        )
    )
    right = ", ".join(f"{d[cut]['right_would_hold_of_obstruction']:.0%}" for cut in cuts)
    out.append(
        f"Whether a true FEV1/FVC is below the LLN hangs on the true FVC; of people chosen so, 90 % intervals that are right for everyone hold less than 90 %: with draws of the model itself in place of the truth, {right} at the cuts in turn.\n"
    )
    out.append(
        f"Of {d['given whole']['blows']} blows given whole {d['given whole']['within_10_ml']:.0%} come back within 10 mL; of those taken as whole, {d['given whole']['within_10_ml_of_those_taken_as_whole']:.0%}.\n"
    )
    if recorded := d.get("ats24"):
        whole = [abs(v["change_ml"]) for v in recorded["given whole"].values()]
        out.append(
            f"**Recorded ATS24 waveforms** ({', '.join(recorded['files'])}), of nobody known; given whole {sum(w < 10 for w in whole)} of {len(whole)} come back within 10 mL, the farthest {max(whole):.0f} mL off.\n"
        )
        for cut in cuts:
            r = recorded[cut]
            out.append(
                f"{cut[0].upper()}{cut[1:]}: {sum(r['inside_90'])} of {len(whole)} in the 90 % interval, {sum(r['trusted'])} trusted\n\n"
                + errors(r["fvc"])
            )
    return "\n".join(out)


def cohort_growth(d: dict[str, Any]) -> str:
    out = []
    for name, run in d.items():
        rows = [
            {
                k.replace("_", " "): v
                for k, v in s.items()
                if k in ("curves", "seconds", "cpu_ms_per_curve", "peak_MB", "file_MB")
            }
            for s in run["sizes"]
        ]
        out.append(
            f"{name.partition('_')[2]} steps a curve, files of {run['partition']:,} curves\n\n"
            + markdown(rows)
        )
    return "\n".join(out)


SECTIONS = {
    "prepare": prepare,
    "peers": peers,
    "samplers": samplers,
    "single": single,
    "cohort_growth": cohort_growth,
    "ablation": ablation,
    "reconstruction": reconstruction,
}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        path = HERE / "results" / f"{name}.json"
        if path.is_file():
            parts.append(
                f"## {name.replace('_', ' ')}\n\n`bench/{name}.py`. "
                + section(json.loads(path.read_text(encoding="utf-8")))
            )
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")
