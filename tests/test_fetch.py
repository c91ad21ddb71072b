"""spiro_fetch against a local mock server, in its good and its bad moods."""

import contextlib
import io
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyreadstat
import pytest

from spiro_diffusion.apps.download import main
from spiro_diffusion.base.errors import DataError
from spiro_diffusion.base.files import locked, read_json, sha256_of, write_json
from spiro_diffusion.formats.download import ROWS, fetch

MAIN = "import sys; from spiro_diffusion.apps.download import main; sys.exit(main())"
NAMES = ["BMX_G.XPT", "DEMO_G.XPT", "SPXRAW_G.xpt", "SPX_G.XPT", "fetched.json"]


class CDC(BaseHTTPRequestHandler):
    """Sends `files`, whole or from where Range says; `mood`, by name, says how it misbehaves."""

    files: dict[str, bytes]
    mood: dict[str, str]
    asked: list[str]
    slow = 0.0

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        span = self.headers.get("Range")
        self.asked.append(f"{name} {span or ''}".strip())
        body = self.files.get(name, b"")
        mood = self.mood.get(name, "")
        if mood == "redirect":
            self.send_response(302)
            self.send_header("Location", "/error.htm")
            return self.end_headers()
        if mood.startswith("http"):
            self.send_response(302)
            self.send_header("Location", f"{mood}/{name}")
            return self.end_headers()
        if not body or mood == "page":
            self.send_response(200)
            self.send_header(
                "Content-Type",
                "text/html; charset=utf-8" if mood != "page" else "application/octet-stream",
            )
            self.end_headers()
            return self.write(b"\r\n<!DOCTYPE html><html><title>Page Not Found</title></html>")
        body = body[: len(body) // 2] if mood == "wrong size" else body
        tag = '"2"' if mood == "revised" else '"1"'
        start = int(span[6:-1]) if span and self.headers.get("If-Range") == tag else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        self.write(body[start : start + 40_000] if mood == "breaks off" else body[start:])
        return None

    def write(self, body: bytes) -> None:
        try:
            for i in range(0, len(body), 4096):
                self.wfile.write(body[i : i + 4096])
                time.sleep(self.slow)
        except ConnectionError:
            pass


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The four downloads of cycle G: as many rows as CDC's have, but hardly anything in them."""
    folder = tmp_path_factory.mktemp("cdc")
    out = {}
    for table in ("DEMO_G", "BMX_G", "SPX_G", "SPXRAW_G"):
        frame = pd.DataFrame({"SEQN": [62161.0 + i for i in range(ROWS[table])], "TEXT": "1,2,3"})
        pyreadstat.write_xport(frame, str(folder / "t.xpt"), file_format_version=8)
        out[f"{table}.XPT"] = (folder / "t.xpt").read_bytes()
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w") as file:
        file.writestr("spxraw_g.xpt", out.pop("SPXRAW_G.XPT"))
    return out | {"SPXRAW_G.ZIP": box.getvalue()}


@contextmanager
def cdc(files: dict[str, bytes], slow: float = 0.0, **mood: str) -> Iterator[tuple[str, type[CDC]]]:
    """A server with `files`; mood: by table, in lower case. Yields its address and its handler."""
    names = {n.split(".")[0].lower(): n for n in files}
    handler = type(
        "Handler",
        (CDC,),
        {"files": files, "mood": {names[k]: v for k, v in mood.items()}, "asked": [], "slow": slow},
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()


class Done(NamedTuple):
    """What a command said, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def command(folder: Path, base: str, *more: str) -> Done:
    """spiro_fetch in this process. An exception that it lets through fails the test."""
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(folder), "--base", base, "--wait", "0.01", *more])
    return Done(status, out.getvalue(), err.getvalue())


def in_folder(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_four_tables_with_a_break_each(downloads, tmp_path):
    folder = tmp_path / "raw data ü"
    with cdc(downloads, demo_g="breaks off", spxraw_g="breaks off") as (base, server):
        done = command(folder, base)
        assert done.returncode == 0, done.stderr
        assert server.asked[:3] == [
            "DEMO_G.XPT",
            "DEMO_G.XPT bytes=40000-",
            "DEMO_G.XPT bytes=80000-",
        ]
    assert in_folder(folder) == NAMES
    for name, data in downloads.items():
        if name.endswith(".XPT"):
            assert (folder / name).read_bytes() == data
    for one in read_json(folder / "fetched.json"):
        assert one["rows"] == ROWS[one["table"]]
        assert one["sha256"] == sha256_of(folder / one["file"])
        assert f"{one['rows']:,} rows" in done.stdout
        assert one["sha256"] in done.stdout
    again = command(folder, "http://127.0.0.1:9")
    assert again.returncode == 0
    assert again.stdout.count("(was there)") == 4, "what is there is not fetched again"


@pytest.mark.parametrize(
    ("mood", "word"),
    [("page", "is a web page"), ("redirect", "is a web page"), ("wrong size", "BMX_G.XPT")],
)
def test_what_is_no_table_is_refused_and_leaves_nothing(downloads, tmp_path, mood, word):
    with cdc(downloads, bmx_g=mood) as (base, _):
        done = command(tmp_path / "new", base, "--table", "BMX")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("spiro_fetch: "), done.stderr
    assert word in done.stderr
    assert in_folder(tmp_path / "new") == []


def test_fewer_rows_than_the_codebook(downloads, tmp_path):
    with cdc({"DEMO_G.XPT": downloads["BMX_G.XPT"]}) as (base, _):
        done = command(tmp_path, base, "--table", "DEMO")
        assert done.returncode == 2
        assert "has 9,338 rows, CDC's codebook says 9,756" in done.stderr
        assert in_folder(tmp_path) == []
        assert command(tmp_path, base, "--table", "DEMO", "--any-rows").returncode == 0
    assert in_folder(tmp_path) == ["DEMO_G.XPT", "fetched.json"]


def test_a_damaged_zip(downloads, tmp_path):
    whole = bytearray(downloads["SPXRAW_G.ZIP"])
    whole[len(whole) // 2] ^= 0xFF
    with cdc({"SPXRAW_G.ZIP": bytes(whole)}) as (base, _):
        done = command(tmp_path, base, "--table", "SPXRAW")
    assert done.returncode == 2
    assert "SPXRAW_G.ZIP is damaged" in done.stderr
    assert in_folder(tmp_path) == []


def test_killed_then_resumed(downloads, tmp_path):
    call = [sys.executable, "-c", MAIN, str(tmp_path), "--table", "SPXRAW", "--base"]
    part = tmp_path / "SPXRAW_G.part"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with cdc(downloads, slow=0.01) as (base, server):
        with subprocess.Popen([*call, base], **quiet) as process:
            while process.poll() is None:
                time.sleep(0.005)
                if part.exists() and part.stat().st_size > 100_000:
                    process.kill()
        had = part.stat().st_size
        assert 100_000 < had < len(downloads["SPXRAW_G.ZIP"])
        server.slow = 0
        assert command(tmp_path, base, "--table", "SPXRAW").returncode == 0
        assert server.asked[-1] == f"SPXRAW_G.ZIP bytes={had}-"
    assert in_folder(tmp_path) == ["SPXRAW_G.xpt", "fetched.json"]


def test_a_later_revision_is_not_mixed_with_an_earlier_one(downloads, tmp_path):
    with cdc(downloads, demo_g="revised") as (base, server):
        (tmp_path / "DEMO_G.part").write_bytes(b"x" * 50_000)
        url = f"{base}/Nchs/Nhanes/2011-2012/DEMO_G.XPT"
        write_json(tmp_path / "DEMO_G.part.json", {"url": url, "same": '"1"', "size": 400_000})
        assert command(tmp_path, base, "--table", "DEMO").returncode == 0
        assert server.asked == ["DEMO_G.XPT bytes=50000-"]
    assert (tmp_path / "DEMO_G.XPT").read_bytes() == downloads["DEMO_G.XPT"]


def test_no_server_as_a_process(tmp_path):
    call = [sys.executable, "-c", MAIN, str(tmp_path), "--base", "http://127.0.0.1:9"]
    done = subprocess.run([*call, "--wait", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("spiro_fetch: http://127.0.0.1:9/")
    assert "check the connection" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_at_once(tmp_path):
    with locked(tmp_path):
        done = command(tmp_path, "http://127.0.0.1:9", "--table", "DEMO")
    assert done.returncode == 2
    assert "another run is at work" in done.stderr


def test_another_host_only_where_it_is_allowed(downloads, tmp_path, capsys):
    one = {"tables": ("DEMO",), "pause": 0}
    with cdc(downloads) as (trusted, _), cdc(downloads, demo_g=trusted) as (base, server):
        with pytest.raises(DataError, match=f"from {base} to {trusted}, .* --allow-redirects"):
            fetch(tmp_path, base=base, **one)
        assert len(server.asked) == 2, "both of CDC's addresses"
        assert in_folder(tmp_path) == []
        fetch(tmp_path, base=base, allow_redirects=True, **one)
    assert f"sent on from {base} to {trusted}" in capsys.readouterr().err
    assert (tmp_path / "DEMO_G.XPT").read_bytes() == downloads["DEMO_G.XPT"]


def test_hashes(downloads, tmp_path):
    one = {"tables": ("DEMO",), "pause": 0}
    with cdc(downloads) as (base, _):
        with pytest.raises(DataError, match="DEMO_G.XPT has the SHA-256 .* as expected"):
            fetch(tmp_path, base=base, sha256={"DEMO_G": "0" * 64}, **one)
        assert in_folder(tmp_path) == []
        digest = fetch(tmp_path, base=base, **one)[0].sha256
        assert fetch(tmp_path, base=base, sha256={"DEMO_G": digest.upper()}, **one)[0].address == ""
        changed = bytearray(downloads["DEMO_G.XPT"])
        changed[-1000] ^= 1
        (tmp_path / "DEMO_G.XPT").write_bytes(changed)
        with pytest.raises(DataError, match="DEMO_G.XPT has changed since it was fetched"):
            fetch(tmp_path, base=base, **one)
