"""Files that do not belong together, or are not what their names say: named, never joined."""

import gzip
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyreadstat
import pytest

from spiro_diffusion import generate, iter_table, load_prepared, prepare, read_people, read_table
from spiro_diffusion.apps.generate import main as spiro_generate
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import read_json, record_beside, shipped_weights
from spiro_diffusion.data import obtain_files, resolve_data_dir
from spiro_diffusion.formats.nhanes import read_raw
from spiro_diffusion.generation.cohort import read_cohort

HERE = Path(__file__).parent / "data"
SEQN = np.arange(62161.0, 62201.0)
DEMO = pd.DataFrame(
    {"SEQN": SEQN, "SDDSRVYR": 7.0, "RIAGENDR": 1 + SEQN % 2, "RIDAGEYR": 30.0, "RIDRETH1": 3.0}
)
BMX = pd.DataFrame({"SEQN": SEQN, "BMXWT": 70.0, "BMXHT": 150.0 + np.arange(40)})
MEMBER = b"HEADER RECORD*******MEMB"
ROWS = b"HEADER RECORD*******OBSV8"


@pytest.fixture
def nhanes(tmp_path: Path) -> Path:
    """A folder with the three tables of 12 people, by names as recorded data have."""
    folder = tmp_path / "nhanes"
    folder.mkdir()
    shutil.copy(HERE / "SPXRAW_G_simulated.sas7bdat", folder / "SPXRAW_G.sas7bdat")
    shutil.copy(HERE / "DEMO_G_simulated.xpt", folder / "DEMO_G.XPT")
    shutil.copy(HERE / "BMX_G_simulated.xpt", folder / "BMX_G.XPT")
    return folder


def as_xport(table: pd.DataFrame, path: Path, version: int = 5) -> bytes:
    name = path.name.split(".")[0][:8]
    pyreadstat.write_xport(table, str(path), table_name=name, file_format_version=version)
    return path.read_bytes()


def read_xport(path: Path) -> pd.DataFrame:
    return pyreadstat.read_xport(str(path))[0]


def changed(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    as_xport(change(read_xport(path)), path)


def without_count(whole: bytes, field: bytes) -> bytes:
    """A file of version 8 as haven wrote it before 2024: `field` for the number of rows."""
    at = whole.find(ROWS)
    return whole[: at + 48] + field.ljust(32) + whole[at + 80 :]


def refused(nhanes: Path, out: Path, word: str) -> None:
    """`prepare` says one sentence with `word` in it, and touches nothing."""
    with pytest.raises(DataError) as caught:
        prepare(nhanes, out)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not (out.parent / "simulated").exists()


# ---- one file, one table


@pytest.mark.parametrize("version", [5, 8])
@pytest.mark.parametrize("order", ["DEMO BMX", "BMX DEMO", "BMX DEMO BMX"])
def test_several_tables_in_one_file(tmp_path: Path, nhanes: Path, version: int, order: str) -> None:
    tables = {"DEMO": DEMO, "BMX": BMX}
    whole = [as_xport(tables[name], tmp_path / f"{name}_G.xpt", version) for name in order.split()]
    both = tmp_path / "both.xpt"
    both.write_bytes(whole[0] + b"".join(data[data.find(MEMBER) :] for data in whole[1:]))
    for read in (read_table, lambda p: list(iter_table(p)), read_raw):
        with pytest.raises(DataError, match=r"both.xpt holds two or more tables \(members"):
            read(both)
    with pytest.raises(DataError, match="two or more tables"):
        read_people(both, tmp_path / "BMX_G.xpt")
    with pytest.raises(DataError, match="two or more tables"):
        read_people(tmp_path / "DEMO_G.xpt", both)
    shutil.copy(both, nhanes / "BMX_G.XPT")
    refused(nhanes, tmp_path / "out" / "data" / "processed", "BMX_G.XPT holds two or more tables")


@pytest.mark.parametrize("field", [b"", b"0", b"0" * 30])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_version_8_without_a_count(tmp_path: Path, rows: int, field: bytes) -> None:
    path = tmp_path / "BMX_G.xpt"
    whole = as_xport(BMX.head(rows), path, 8)
    path.write_bytes(without_count(whole, field))
    assert read_table(path)["BMXHT"].tolist() == BMX["BMXHT"].head(rows).tolist()


def test_version_8_without_a_count_whose_last_rows_are_blank(tmp_path: Path) -> None:
    path = tmp_path / "BMX_G.xpt"
    table = BMX.assign(NOTE=["a"] * 30 + [""] * 10)
    table.loc[35:, ["BMXWT", "BMXHT"]] = np.nan
    path.write_bytes(without_count(as_xport(table, path, 8), b""))
    assert len(read_table(path)) == 40


def test_prepare_with_a_bmx_without_a_count(nhanes: Path, tmp_path: Path) -> None:
    path = nhanes / "BMX_G.XPT"
    path.write_bytes(without_count(as_xport(read_xport(path), path, 8), b""))
    prepare(nhanes, tmp_path / "data" / "processed")
    assert load_prepared(tmp_path)[1]["height"].notna().mean() > 0.9


@pytest.mark.parametrize("name", ["DEMO_G.XPT", "BMX_G.XPT", "SPXRAW_G.xpt", "SPX_G.xpt"])
def test_tables_without_rows(nhanes: Path, tmp_path: Path, name: str) -> None:
    numbers = [f"SPXN{v}" for v in ("FVC", "FEV1", "FEV3", "FEV6", "PEF", "F257", "EV", "FET")]
    empty = {
        "SPXRAW_G.xpt": lambda: read_table(nhanes / "SPXRAW_G.sas7bdat"),
        "SPX_G.xpt": lambda: pd.DataFrame(
            {"SEQN": [1.0], **dict.fromkeys(numbers, 3.0), "SPXNQFVC": "A", "SPXNQFV1": "A"}
        ),
    }.get(name, lambda: read_xport(nhanes / name))().head(0)
    if name == "SPXRAW_G.xpt":
        (nhanes / "SPXRAW_G.sas7bdat").unlink()
    as_xport(empty, nhanes / name)
    refused(nhanes, tmp_path / "out", f"{name} is a table without rows")


# ---- SEQN


@pytest.mark.parametrize("hair", [-1e-7, 1e-7, -1e-4, 5e-4])
@pytest.mark.parametrize("name", ["DEMO_G.XPT", "BMX_G.XPT"])
def test_seqn_a_hair_off(nhanes: Path, tmp_path: Path, name: str, hair: float) -> None:
    prepare(nhanes, tmp_path / "a" / "data" / "processed")
    changed(nhanes / name, lambda table: table.assign(SEQN=table["SEQN"] + hair))
    prepare(nhanes, tmp_path / "b" / "data" / "processed")
    pd.testing.assert_frame_equal(
        load_prepared(tmp_path / "b")[1], load_prepared(tmp_path / "a")[1]
    )


@pytest.mark.parametrize("name", ["DEMO_G.XPT", "BMX_G.XPT"])
def test_seqn_that_is_not_whole(nhanes: Path, tmp_path: Path, name: str) -> None:
    def half(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(SEQN=table["SEQN"].where(table.index != 4, table["SEQN"] + 0.5))

    changed(nhanes / name, half)
    refused(nhanes, tmp_path / "out", "in row 5, which is no whole number")


def test_seqn_as_text(nhanes: Path, tmp_path: Path) -> None:
    changed(nhanes / "BMX_G.XPT", lambda t: t.assign(SEQN=t["SEQN"].astype(int).astype(str)))
    refused(nhanes, tmp_path / "out", "BMX_G.XPT has text where numbers belong, in SEQN")


@pytest.mark.parametrize(("name", "column"), [("DEMO_G.XPT", "RIDAGEYR"), ("BMX_G.XPT", "BMXHT")])
def test_two_rows_of_one_person(nhanes: Path, tmp_path: Path, name: str, column: str) -> None:
    whole = read_xport(nhanes / name)
    as_xport(pd.concat([whole, whole.head(3)]), nhanes / name)
    prepare(nhanes, tmp_path / "same" / "data" / "processed")
    assert len(load_prepared(tmp_path / "same")[1])
    other = whole.head(3).assign(**{column: 33.0})
    as_xport(pd.concat([whole, other]), nhanes / name)
    refused(nhanes, tmp_path / "out", f"{name} has different rows for one participant")


def test_rows_without_seqn_are_said(nhanes: Path, tmp_path: Path) -> None:
    changed(nhanes / "BMX_G.XPT", lambda t: t.assign(SEQN=t["SEQN"].where(t.index > 1)))
    with pytest.warns(UserWarning, match="BMX_G.XPT: 2 of 12 rows have no SEQN"):
        prepare(nhanes, tmp_path / "out")


# ---- tables of others


def test_bmx_of_another_cycle(nhanes: Path, tmp_path: Path) -> None:
    changed(nhanes / "BMX_G.XPT", lambda table: table.assign(SEQN=table["SEQN"] - 10_000))
    refused(nhanes, tmp_path / "out", "BMX_G.XPT has nobody of")


def test_bmx_of_a_few(nhanes: Path, tmp_path: Path) -> None:
    changed(nhanes / "BMX_G.XPT", lambda table: table.head(3))
    with pytest.warns(UserWarning, match="BMX_G.XPT has 25% of the people"):
        prepare(nhanes, tmp_path / "out")


def test_raw_curves_of_others(nhanes: Path, tmp_path: Path) -> None:
    for name in ("DEMO_G.XPT", "BMX_G.XPT"):
        changed(nhanes / name, lambda table: table.assign(SEQN=table["SEQN"] + 5000))
    refused(nhanes, tmp_path / "out", "SPXRAW_G.sas7bdat is left: nobody in")


def test_recorded_curves_with_simulated_people(nhanes: Path, tmp_path: Path) -> None:
    (nhanes / "DEMO_G.XPT").rename(nhanes / "DEMO_G_simulated.xpt")
    refused(nhanes, tmp_path / "out", "DEMO_G_simulated.xpt is simulated and")
    (nhanes / "BMX_G.XPT").rename(nhanes / "BMX_G_simulated.xpt")
    refused(nhanes, tmp_path / "out", "DEMO_G_simulated.xpt is simulated and")


# ---- there, but not ready


def packed(path: Path, data: bytes) -> None:
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w") as box:
            box.writestr("inner/spxraw_g.sas7bdat", data)
    else:
        path.write_bytes(gzip.compress(data))


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("SPXRAW_G.ZIP", "not unpacked"),
        ("spxraw_g.zip", "not unpacked"),
        ("Downloads/SPXRAW_G.zip", "not unpacked"),
        ("cdc 2011.zip", "not unpacked"),
        ("SPXRAW_G.sas7bdat.gz", "not unpacked"),
        ("SPXRAW_G.7z", "not unpacked"),
        ("SPXRAW_G.ZIP.crdownload", "has not ended"),
        ("SPXRAW_G.part", "has not ended"),
        ("SPXRAW_G (1).sas7bdat", "rename it"),
    ],
)
def test_raw_curves_that_are_not_ready(
    nhanes: Path, tmp_path: Path, capfd: pytest.CaptureFixture, name: str, word: str
) -> None:
    raw = nhanes / "SPXRAW_G.sas7bdat"
    (nhanes / name).parent.mkdir(exist_ok=True)
    packed(nhanes / name, raw.read_bytes())
    raw.unlink()
    refused(nhanes, tmp_path / "out" / "data" / "processed", name.rsplit("/", 1)[-1])
    with pytest.raises(DataError, match=word):
        obtain_files(nhanes, tmp_path / "simulated")
    assert "simulating" not in capfd.readouterr().err


def test_a_zip_that_is_a_web_page(nhanes: Path, tmp_path: Path) -> None:
    (nhanes / "DEMO_G.XPT").unlink()
    (nhanes / "DEMO_G.ZIP").write_text("<!DOCTYPE html><html>Page not found</html>")
    refused(nhanes, tmp_path / "out", "DEMO_G.ZIP is a web page")


def test_a_zip_beside_what_was_unpacked_from_it_is_no_fault(nhanes: Path, tmp_path: Path) -> None:
    packed(nhanes / "SPXRAW_G.ZIP", (nhanes / "SPXRAW_G.sas7bdat").read_bytes())
    assert prepare(nhanes, tmp_path / "out")["source"] == "CDC's recorded blows"


def test_a_zip_alone_is_not_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "raw" / "nhanes"
    folder.mkdir(parents=True)
    packed(folder / "SPXRAW_G.ZIP", b"")
    assert resolve_data_dir("", tmp_path) == folder
    refused(folder, tmp_path / "data" / "processed", "SPXRAW_G.ZIP is not unpacked")


def test_what_is_simulated_is_said_before(
    nhanes: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nhanes / "SPXRAW_G.sas7bdat").unlink()
    monkeypatch.setattr("spiro_diffusion.simulator.survey.write_nhanes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(nhanes, tmp_path / "data" / "processed")
    said = capfd.readouterr().err.splitlines()[0]
    assert said.startswith(f"note: {nhanes} has no SPXRAW_G (.sas7bdat or .xpt): simulating blows")
    assert said.endswith(f"{tmp_path / 'data' / 'simulated'} as SPXRAW_G_simulated.xpt")


def test_prepared_again_after_one_file_changed(nhanes: Path, tmp_path: Path) -> None:
    processed = tmp_path / "data" / "processed"
    prepare(nhanes, processed)
    before = load_prepared(tmp_path)[1]
    changed(nhanes / "BMX_G.XPT", lambda table: table.assign(BMXHT=table["BMXHT"] + 1))
    prepare(nhanes, processed)
    after = load_prepared(tmp_path)[1]
    assert np.allclose(after["height"] - before["height"], 1, equal_nan=True)


# ---- names


MAN = ["--age", "40", "--height", "170", "--sex", "male", "-n", "4", "--steps", "1"]


def test_folders_whose_names_have_dots(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def parts(name: str, age: str) -> list[str]:
        out = ["--out", str(tmp_path / name), "--partition", "2"]
        return [*MAN[:1], age, *MAN[2:], *out]

    names = {"site.A": "40", "site.B": "50", "site": "60", "site ü.1.2": "70"}
    for name, age in names.items():
        assert spiro_generate(parts(name, age)) == 0, capsys.readouterr().err
    (tmp_path / "site.A" / "part-000001.parquet").unlink()  # as a killed run leaves it
    for name, age in names.items():
        assert spiro_generate(parts(name, age)) == 0, capsys.readouterr().err
        cohort = read_cohort(tmp_path / name)
        assert cohort.table["age"].tolist() == [float(age)] * 4
        assert cohort.info["complete"] is True
        assert record_beside(tmp_path / name).name == f"{name}.json"


def test_one_cohort_in_every_format_under_one_name(tmp_path: Path) -> None:
    cohort = generate({"age": 40, "height": 170, "sex": "male"}, 2, steps=1)
    names = ["c.parquet", "c.csv", "c.npz", "c.b.parquet", "C.PARQUET", "a.b.c.parquet"]
    for name in names:
        cohort.save(tmp_path / name)
        record = read_json(record_beside(tmp_path / name))
        assert record["files"][0] == name
    cohort.save(tmp_path / "folder", file_format="nhanes")
    assert read_cohort(tmp_path / "a.b.c.parquet").info["files"] == ["a.b.c.parquet"]
    with pytest.raises(DataError, match=r"c\.csv exists"):
        cohort.save(tmp_path / "c.csv")


def test_a_record_of_another_output_is_never_overwritten(tmp_path: Path) -> None:
    cohort = generate({"age": 40, "height": 170, "sex": "male"}, 1, steps=1)
    cohort.save(tmp_path / "c", file_format="nhanes")
    kept = (tmp_path / "c.json").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"c\.json is the record of c"):
            cohort.save(tmp_path / "c.parquet", overwrite)
    assert (tmp_path / "c.json").read_bytes() == kept
    assert not (tmp_path / "c.parquet").exists()


# ---- next steps


def test_exported_tables_are_read_by_pandas(tmp_path: Path) -> None:
    cohort = generate({"age": 40, "height": 170, "sex": "male"}, 2, steps=1)
    cohort.save(tmp_path / "exp", file_format="nhanes")
    for name in ("DEMO", "BMX"):
        path = tmp_path / "exp" / f"{name}_G_simulated.xpt"
        table = pd.read_sas(path, format="xport")
        pd.testing.assert_frame_equal(table, read_table(path), check_dtype=False)


def test_spiro_run_without_papermill(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['papermill'] = None\n"
        "from spiro_diffusion.apps.run import main\n"
        "sys.exit(main(['04_inference', '--root', sys.argv[1], '-p', 'age', '45']))"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "r")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=HERE.parent.parent)
    assert done.returncode == 2
    assert done.stderr.startswith("spiro_run: spiro_run needs papermill")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


# ---- artefacts that do not belong together


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a codec, latents and a cLDM, each trained for a few steps."""
    root = tmp_path_factory.mktemp("made")
    prepare(None, root / "data" / "processed", n_people=60, seed=1)
    train_codec(root, seed=0)
    encode(root)
    train_model(root)
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` that may be changed."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def train_codec(root: Path, seed: int) -> None:
    from spiro_diffusion.vqvae import settings_for, train_vqvae

    flow, metadata = load_prepared(root)
    settings = settings_for("smoke", seed=seed, device="cpu", steps=2)
    train = (metadata["split"] == "train").to_numpy()
    train_vqvae(np.array(flow[train]), settings, root / "checkpoints" / "vqvae")


def encode(root: Path) -> None:
    from spiro_diffusion.latents import describe_blows, encode_dataset
    from spiro_diffusion.vqvae import VQVAE, check_codec

    flow, metadata = load_prepared(root)
    codec = root / "checkpoints" / "vqvae"
    check_codec(codec, flow, metadata)
    encode_dataset(VQVAE.from_pretrained(codec), flow, root / "data" / "processed")
    describe_blows(flow, metadata, root / "data" / "processed")


def train_model(root: Path) -> None:
    from spiro_diffusion.cldm import settings_for, train_cldm
    from spiro_diffusion.latents import load_described, load_latents

    metadata = load_described(root, load_prepared(root)[1])
    settings = settings_for("smoke", device="cpu", steps=2)
    folder = root / "checkpoints"
    train_cldm(load_latents(root)[0], metadata, settings, folder / "cldm", folder / "vqvae")


def draw(root: Path) -> None:
    generate({"age": 40, "height": 170, "sex": "male"}, run_dir=root, steps=1)


STEPS = (lambda root: train_codec(root, 0), encode, train_model, draw)


def first_refusal(root: Path, steps: tuple) -> str:
    for step in steps:
        try:
            step(root)
        except DataError as err:
            return str(err)
    return ""


def test_steps_in_order_and_each_again(run: Path) -> None:
    for step in STEPS:
        step(run)
        assert first_refusal(run, (encode, train_model, draw)) == ""


def test_a_codec_trained_again(run: Path) -> None:
    train_codec(run, seed=7)
    assert "run 02_latents again" in first_refusal(run, (train_model,))
    assert "run 02_latents and 03_cldm again" in first_refusal(run, (draw,))
    encode(run)
    assert "03_cldm again" in first_refusal(run, (draw,))
    assert first_refusal(run, (train_model, draw)) == ""


def test_signals_prepared_again_from_others(run: Path) -> None:
    prepare(None, run / "data" / "processed", n_people=60, seed=2)
    assert "run 02_latents again" in first_refusal(run, (train_model,))
    assert "run 01_vqvae again" in first_refusal(run, (encode,))
    assert first_refusal(run, STEPS) == ""


def test_signals_replaced_by_hand(run: Path) -> None:
    path = run / "data" / "processed" / "signals_L512.npy"
    np.save(path, np.load(path)[::-1])
    assert "run 00_data again" in first_refusal(run, (encode,))


@pytest.mark.parametrize("how", ["sorted", "edited", "shorter"])
def test_metadata_changed(run: Path, how: str) -> None:
    path = run / "data" / "processed" / "metadata_aligned.csv"
    table = pd.read_csv(path)
    if how == "sorted":
        table = table.sort_values("age")
    elif how == "edited":
        table["height"] += 1
    else:
        table = table[1:]
    table.to_csv(path, index=False)
    assert "run 00_data again" in first_refusal(run, (encode,))


def test_latents_and_codes_of_another_run(run: Path, made: Path) -> None:
    processed = run / "data" / "processed"
    np.save(processed / "codes.npy", np.load(processed / "codes.npy")[::-1])
    assert "codes.npy was changed" in first_refusal(run, (train_model,))
    train_codec(run, seed=7)
    encode(run)
    for name in ("codes.npy", "codes.npy.json"):
        shutil.copy(made / "data" / "processed" / name, processed / name)
    refusal = first_refusal(run, (train_model,))
    assert "run 02_latents again" in refusal
    assert "codes.npy was not made from the present VQ-VAE" in refusal


def test_artefacts_without_a_record(run: Path) -> None:
    processed = run / "data" / "processed"
    for path, step, work in (
        (processed / "blows.csv", "02_latents", train_model),
        (processed / "latents.npy", "02_latents", train_model),
        (processed / "metadata_aligned.csv", "00_data", encode),
        (run / "checkpoints" / "vqvae" / "model.safetensors", "01_vqvae", encode),
    ):
        record = record_beside(path)
        kept = record.read_bytes()
        record.unlink()
        refusal = first_refusal(run, (work,))
        assert f"run {step} again" in refusal
        assert path.name in refusal
        record.write_bytes(kept)
    assert first_refusal(run, STEPS) == ""


def test_shipped_models_stand_on_their_own(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(shipped_weights(), run / "checkpoints")
    assert first_refusal(run, (encode, draw)) == ""


def test_a_run_is_not_resumed_for_other_data(run: Path, capfd: pytest.CaptureFixture) -> None:
    path = run / "data" / "processed"
    flow, metadata = load_prepared(run)
    prepare(None, path, n_people=60, seed=1)
    train_codec(run, seed=0)
    assert "starting anew" not in capfd.readouterr().out
    signals = np.array(flow)
    signals[np.flatnonzero(metadata["split"] == "train")[77]] *= 1.001
    np.save(path / "signals_L512.npy", signals)
    record = path / "metadata_aligned.csv.json"
    noted = json.loads(record.read_text())
    from spiro_diffusion.base.files import sha256_of

    noted["made_from"]["signals"] = sha256_of(path / "signals_L512.npy")
    record.write_text(json.dumps(noted))
    train_codec(run, seed=0)
    assert "other settings (data): starting anew" in capfd.readouterr().out
