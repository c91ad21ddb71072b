"""The forced expiration is found in whatever is recorded around it, or a reason is given."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spiro_diffusion.base.errors import DataError
from spiro_diffusion.simulator.people import simulate_people
from spiro_diffusion.simulator.session import simulate_blows
from spiro_diffusion.spirometry.clock import monotone_rows, to_clock, volume_on_clock
from spiro_diffusion.spirometry.indices import indices, measure_rows
from spiro_diffusion.spirometry.manoeuvre import find_expirations, forced_expirations
from spiro_diffusion.spirometry.quality import acceptability

RATE = 100


def blow(time, fvc=4.2, fast=0.7, late=3.0, slow=0.2):
    """A computed forced expiration (T,) L: two compartments that empty, with a soft start."""
    since = np.maximum(time - 0.08, 0)
    emptied = 1 - (1 - slow) * np.exp(-since / fast) - slow * np.exp(-since / late)
    return fvc * emptied * (1 - np.exp(-((since / 0.05) ** 2)))


def measured(volume, time):
    """Indices of a curve that is nothing but the expiration."""
    rows, axis, _ = monotone_rows(volume, time)
    return {name: value[0] for name, value in measure_rows(rows, axis, "2019").items()}


def even(samples, rate=RATE):
    return np.arange(samples) / rate


T = even(8 * RATE)
BLOW = blow(T)
TRUE = measured(BLOW, T)


@pytest.fixture(scope="module")
def simulated():
    """Simulated manoeuvres of all efforts: a list of volumes (T,) L at 100 samples a second."""
    table = simulate_blows(simulate_people(25, seed=4), seed=4)
    curves = []
    for text, factor in zip(table["SPXRAW"], table["SPAFACT"], strict=True):
        steps = np.array(text.split(","), dtype=float)
        curves.append(np.concatenate([[0], np.cumsum(steps)]) * factor / 1000)
    return curves


# ---------------------------------------------------------------- what surrounds a manoeuvre


@dataclass(frozen=True)
class Around:
    """What a recording holds beside the manoeuvre, and how it was sampled."""

    rest: float  # s of rest before it
    tidal: int  # quiet breaths before it
    breath_in: float  # of FVC, breathed in before it
    after: str  # what follows: nothing, a breath in, padding
    after_seconds: float
    offset: float  # L
    late: float  # s, of the first sample
    rate: int  # samples per second
    jitter: float  # s
    millilitres: bool


AROUND = st.builds(
    Around,
    rest=st.sampled_from([0.0, 0.4, 5.0, 22.0, 60.0]),
    tidal=st.integers(0, 4),
    breath_in=st.floats(0.1, 1.0),
    after=st.sampled_from(["", "breath in", "tidal", "last", "zeros", "nan"]),
    after_seconds=st.floats(0.1, 15.0),
    offset=st.floats(-5, 5),
    late=st.sampled_from([0.0, 100.0]),
    rate=st.sampled_from([50, 100, 125, 200, 500, 1000]),
    jitter=st.sampled_from([0.0, 0.0005, 0.002]),
    millilitres=st.booleans(),
)


def quiet_breaths(count, level, fvc, rate):
    """Quiet breathing that begins and ends at `level`, L."""
    time = even(int(4 * count * rate), rate)
    return level - 0.05 * fvc * (1 - np.cos(2 * np.pi * time / 4))


def recording(curve, around, seed):
    """The curve (T,) L at 100 Hz with everything of `around`: volume and time."""
    rate = around.rate
    fvc = curve.max()
    own = even(int((len(curve) - 1) / RATE * rate) + 1, rate)
    manoeuvre = np.interp(own, even(len(curve)), curve - curve[0])
    full = around.breath_in * fvc
    level = full if around.tidal else 0.0
    parts = [np.full(int(around.rest * rate), level)]
    if around.tidal:
        parts.append(quiet_breaths(around.tidal, full, fvc, rate))
        seconds = np.linspace(0, np.pi, int(1.5 * rate))
        parts.append(full * (1 + np.cos(seconds[:-1])) / 2)
    parts.append(manoeuvre)
    end = manoeuvre[-1]
    samples = int(around.after_seconds * rate)
    if around.after in ("breath in", "tidal"):
        depth = 0.7 * fvc
        parts.append(end - depth * np.sin(np.linspace(0, np.pi / 2, int(1.5 * rate)))[1:])
        if around.after == "tidal":
            parts.append(quiet_breaths(2, end - depth, fvc, rate))
    padding = {"last": end, "zeros": 0.0, "nan": np.nan}
    if around.after in padding:
        parts.append(np.full(samples, padding[around.after]))
    volume = np.concatenate(parts) + around.offset
    time = even(len(volume), rate) + around.late
    rng = np.random.default_rng(seed)
    time = time + rng.uniform(-around.jitter, around.jitter, len(time))
    return (1000 if around.millilitres else 1) * volume, time


REASONS = ("mL", "does not rise", "packets", "jumps", "no air was moved")


def indices_or_reason(volume, time):
    """The indices of a recording, or why there are none."""
    try:
        return indices(volume, time).iloc[0], ""
    except DataError as err:
        return None, str(err)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(around=AROUND, which=st.integers(0, 10_000), seed=st.integers(0, 1000))
def test_indices_are_those_of_the_manoeuvre_alone_or_a_reason_is_given(
    simulated, around, which, seed
):
    curve = simulated[which % len(simulated)]
    alone = measured(curve, even(len(curve)))
    found, reason = indices_or_reason(*recording(curve, around, seed))
    if reason:
        assert any(word in reason for word in REASONS), reason
        may_refuse = around.millilitres or around.jitter > 0 or alone["fvc"] < 0.11
        assert may_refuse, f"a good recording was refused: {reason}"
        return
    assert not around.millilitres
    for name in ("fvc", "fev1", "fev6"):
        assert abs(found[name] - alone[name]) <= max(0.010, 0.01 * alone[name]), name
    coarse = 0.05 if around.rate >= RATE else 0.10  # a peak of one sample is rounded
    assert abs(found["pef"] / alone["pef"] - 1) <= coarse


def test_simulated_manoeuvres_are_taken_whole(simulated):
    for curve in simulated:
        found = forced_expirations(curve, even(len(curve)))
        assert len(found) == 1
        exhaled = curve[found[0].last_rise] - curve[found[0].start]
        assert exhaled >= np.max(curve - curve[0]) - 1e-9


# ------------------------------------------------------- a breath in, rest, padding: one by one


@pytest.mark.parametrize("litres", [0.3, 1.2, 2.0])
def test_a_breath_in_first(litres):
    breath = -litres * np.sin(np.linspace(0, np.pi / 2, 150))
    volume = np.concatenate([breath[:-1], BLOW - litres])
    found = indices(volume, even(len(volume))).iloc[0]
    for name in ("fvc", "fev1", "pef", "fet", "bev"):
        assert found[name] == pytest.approx(TRUE[name], abs=0.002)
    assert found["t0"] == pytest.approx(TRUE["t0"] + 1.49, abs=0.01)


AFTER = {
    "a breath in": BLOW[120] * (1 - 0.35 * np.minimum(np.arange(1, 181), 150) / 150),
    "its last value": np.full(180, BLOW[120]),
    "its last value, a long time": np.full(3000, BLOW[120]),
    "zeros": np.zeros(180),
    "NaN": np.full(180, np.nan),
}


@pytest.mark.parametrize("after", AFTER)
def test_a_stop_in_full_flow_is_no_plateau_whatever_follows(after):
    volume = np.concatenate([BLOW[:121], AFTER[after]])
    found = acceptability(volume, even(len(volume))).iloc[0]
    assert not found["plateau"]
    assert not found["fet15"]
    assert not found["fvc_acceptable"]
    assert indices(volume, even(len(volume)))["fvc"][0] == pytest.approx(BLOW[120], abs=1e-6)


def test_flow_that_came_to_rest_is_a_plateau():
    short = blow(T, fast=0.35, slow=0.0)
    volume = np.concatenate([short[:300], np.full(150, short[299])])
    assert acceptability(volume, even(len(volume)))["plateau"][0]
    volume = np.concatenate([volume, volume[-1] - np.linspace(0, 2, 100)])
    assert acceptability(volume, even(len(volume)))["plateau"][0]


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.003])
@pytest.mark.parametrize("drift", [0.0, 0.003, -0.003])
def test_rest_at_full_lungs_does_not_count(noise, drift):
    rest = drift * even(2200) + np.random.default_rng(1).normal(0, noise, 2200)
    volume = np.concatenate([rest, rest[-1] + BLOW])
    found = indices(volume, even(len(volume))).iloc[0]
    for name in ("fvc", "fev1"):
        assert found[name] == pytest.approx(TRUE[name], abs=0.010)
    flow = to_clock(volume, even(len(volume)))
    assert volume_on_clock(flow)[0, -1] == pytest.approx(TRUE["fvc"], abs=0.015)


def test_a_hesitation_is_part_of_the_manoeuvre():
    waited = np.concatenate([np.linspace(0, 0.3, 100), np.full(100, 0.3), 0.3 + BLOW])
    found = indices(waited, even(len(waited))).iloc[0]
    assert found["fvc"] == pytest.approx(TRUE["fvc"] + 0.3, abs=0.005)
    assert not acceptability(waited, even(len(waited)))["bev"][0]


def test_what_does_not_fit_on_the_clock_is_said():
    time = even(2800)
    long = blow(time, fvc=3.2, fast=0.9, late=9, slow=0.65)
    assert indices(long, time)["fvc"][0] == pytest.approx(long[-1], abs=1e-9)
    with pytest.warns(UserWarning, match=r"20\.48 s: up to 0\.1"):
        to_clock(long, time)


def test_several_manoeuvres_in_one_recording():
    breath = np.linspace(BLOW[-1], 0, 150)
    volume = np.concatenate([0.95 * BLOW, 0.95 * breath, BLOW, breath, 0.9 * BLOW])
    time = even(len(volume))
    with pytest.raises(DataError, match="3 forced expirations"):
        indices(volume, time)
    sizes = [indices(volume, time, which=number)["fvc"][0] for number in range(3)]
    assert sizes == pytest.approx([0.95 * BLOW[-1], BLOW[-1], 0.9 * BLOW[-1]], abs=0.005)
    assert indices(volume, time, which="largest")["fvc"][0] == pytest.approx(sizes[1])
    assert acceptability(volume, time, which=2).shape == (1, 10)
    assert len(forced_expirations(volume, time)) == 3
    with pytest.raises(DataError, match="no number 3"):
        indices(volume, time, which=3)


def test_a_slow_vital_capacity_is_no_second_manoeuvre():
    slow = 4.3 * (1 - np.cos(np.linspace(0, np.pi, 900))) / 2
    breath = np.linspace(slow[-1], 0, 150)
    volume = np.concatenate([slow, breath, BLOW])
    assert indices(volume, even(len(volume)))["fvc"][0] == pytest.approx(BLOW[-1], abs=0.005)


# ---------------------------------------------------------------- times and volumes that cannot be


def test_jittered_stamps_are_mended_and_true_ones_kept():
    rng = np.random.default_rng(0)
    jittered = T + rng.uniform(-0.002, 0.002, len(T))
    raw = np.max(np.diff(BLOW) / np.diff(jittered))
    assert raw > 1.1 * TRUE["pef"], "the fault is there"
    assert indices(BLOW, jittered)["pef"][0] == pytest.approx(TRUE["pef"], rel=0.01)
    assert indices(blow(jittered), jittered)["pef"][0] == pytest.approx(TRUE["pef"], rel=0.03)


def test_stamps_rounded_to_milliseconds():
    time = even(8 * 300, 300)
    found = indices(blow(time), np.round(time, 3))["pef"][0]
    assert found == pytest.approx(TRUE["pef"], rel=0.01)


def test_a_fine_time_axis_does_not_sharpen_the_peak():
    time = even(8 * 1000, 1000)
    noisy = blow(time) + np.random.default_rng(0).normal(0, 0.0002, len(time))
    assert indices(noisy, time)["pef"][0] == pytest.approx(TRUE["pef"], rel=0.02)


@pytest.mark.parametrize(("step", "off"), [(0.005, 0.03), (0.01, 0.03), (0.02, 0.06), (0.03, 0.08)])
@pytest.mark.parametrize("rounded", [np.rint, np.floor])
def test_volume_in_coarse_steps(step, off, rounded):
    found = indices(step * rounded(BLOW / step), T).iloc[0]
    assert found["pef"] == pytest.approx(TRUE["pef"], rel=off)
    assert found["fvc"] == pytest.approx(TRUE["fvc"], abs=step)


FLOW = np.diff(BLOW, prepend=0) * RATE
PACKETS = 0.04 * (np.arange(len(T)) // 4) + 1e-4 * (np.arange(len(T)) % 4)
IMPOSSIBLE = {
    "mL": (1000 * BLOW, T, "mL"),
    "cL": (100 * BLOW, T, "cL"),
    "litres a minute": (60 * BLOW, T, "L/min"),
    "cubic metres": (BLOW / 1000, T, "no air was moved"),
    "ms": (BLOW, 1000 * T, "ms"),
    "numbers of samples": (BLOW, np.arange(len(T)), "number of the sample"),
    "minutes": (BLOW, T / 60, "minutes"),
    "flow": (FLOW, T, "flow"),
    "upside down": (-BLOW, T, "falls"),
    "a loop upside down": (
        -np.concatenate([BLOW, BLOW[-1] * (1 + np.cos(np.linspace(0, np.pi, 200))) / 2]),
        even(len(T) + 200),
        "upside down",
    ),
    "repeated stamps": (BLOW, np.repeat(T[::2], 2), "does not rise"),
    "packets": (BLOW, PACKETS, "packets"),
    "backwards": (BLOW, T[::-1], "does not rise"),
    "NaN in time": (BLOW, np.where(T == 2, np.nan, T), "NaN"),
    "a hole": (np.where(np.abs(T - 2) < 0.1, np.nan, BLOW), T, "NaN"),
    "steps of 0.1 L": (np.rint(10 * BLOW) / 10, T, "steps of 100 mL"),
    "a jump within": (BLOW + 1.2 * (T > 0.5), T, "jumps"),
    "a dropout": (np.where(np.abs(T - 0.5) < 0.03, 0, BLOW), T, "jumps"),
    "nothing": (np.zeros_like(T), T, "no air was moved"),
    "one quiet breath": (0.3 * (1 - np.cos(np.pi * np.minimum(T, 2) / 2)), T, "forced expiration"),
    "quiet breathing": (0.25 * np.sin(2 * np.pi * T / 4), T, "forced expiration"),
    "text": (["a"] * len(T), T, "numbers"),
    "two lengths": (BLOW[:-1], T, "expected"),
}


@pytest.mark.parametrize("fault", IMPOSSIBLE)
@pytest.mark.parametrize("way_in", [indices, acceptability, to_clock, find_expirations])
def test_what_cannot_be_is_refused_by_name(fault, way_in):
    volume, time, word = IMPOSSIBLE[fault]
    with pytest.raises(DataError, match=word):
        way_in(volume, time)


def test_resets_and_padding_outside_the_manoeuvre_are_no_fault():
    before = np.full(300, 2.0)
    volume = np.concatenate([before, BLOW, np.zeros(500), np.full(100, 3.0)])
    found = indices(volume, even(len(volume))).iloc[0]
    assert found["fvc"] == pytest.approx(TRUE["fvc"], abs=1e-6)


def test_one_bad_curve_of_many_is_named():
    with pytest.raises(DataError, match=r"curve 1: .*mL"):
        indices(np.stack([BLOW, 1000 * BLOW]), T)


def test_ordinary_recordings_are_not_warned_of(simulated):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for curve in simulated[:50]:
            to_clock(curve, even(len(curve)))
