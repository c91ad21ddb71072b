"""The notebooks as people open them: JupyterLab in a browser, by clicks and keys.

Needs chromium; `pytest -m slow tests/test_lab.py`.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spiro_diffusion.apps.run import NOTEBOOKS

websocket = pytest.importorskip("websocket", reason="websocket-client comes with JupyterLab")
pytest.importorskip("jupyterlab")
CHROMIUM = next(
    (c for c in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if c), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here"),
]
NBS = Path(__file__).parent.parent / "nbs"


def until(what: Callable[[], Any], seconds: float, why: str) -> Any:
    """The first true value of `what()`, polled again and again."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, f"after {seconds:g} s still not: {why}"
        time.sleep(0.1)
    return value


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Page:
    """A tab of the browser, by the Chrome DevTools Protocol."""

    def __init__(self, port: int):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20) as answer:
            (tab,) = [t for t in json.load(answer) if t["type"] == "page"]
        self.socket = websocket.create_connection(
            tab["webSocketDebuggerUrl"], timeout=120, suppress_origin=True
        )
        self.sent = 0
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        wanted = self.sent
        while (answer := json.loads(self.socket.recv())).get("id") != wanted:
            if (
                answer.get("method") == "Page.javascriptDialogOpening"
            ):  # "Leave this page?", after Run All
                self.sent += 1
                self.socket.send(
                    json.dumps(
                        {
                            "id": self.sent,
                            "method": "Page.handleJavaScriptDialog",
                            "params": {"accept": True},
                        }
                    )
                )
        assert "error" not in answer, answer
        return answer["result"]

    def js(self, code: str) -> Any:
        """The value of an expression in the page."""
        result = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def see(self, selector: str, text: str = "", seconds: float = 60) -> list[float]:
        """The middle (x, y) of the first visible element of that selector and text."""
        code = f"""(() => {{
            const text = {json.dumps(text)};
            for (const e of document.querySelectorAll({json.dumps(selector)})) {{
                const b = e.getBoundingClientRect();
                if (!b.width || !b.height) continue;
                if (text && e.textContent.trim() != text) continue;
                return [b.x + b.width / 2, b.y + b.height / 2];
            }}
        }})()"""
        return until(lambda: self.js(code), seconds, f"{selector} {text} is seen")

    def click(self, selector: str, text: str = "") -> None:
        x, y = self.see(selector, text)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="none" if kind == "mouseMoved" else "left",
                clickCount=1,
            )

    def key(self, name: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code
            )

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the notebooks, without outputs, at profile smoke.

    The explorer's ends with the lines of the README.
    """
    root = tmp_path_factory.mktemp("läb with space")
    for source in sorted(NBS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in source.parts:
            continue
        book = json.loads(source.read_text(encoding="utf-8"))
        for cell in (c for c in book["cells"] if c["cell_type"] == "code"):
            cell["outputs"] = []
            cell["execution_count"] = None
            text = "".join(cell["source"])
            if "parameters" in cell["metadata"].get("tags", []):
                cell["source"] = text.replace('profile: str = "default"', 'profile: str = "smoke"')
                assert cell["source"] != text or source.stem not in NOTEBOOKS
        if source.stem == "05_explorer":
            cell = {
                "cell_type": "code",
                "id": "sliders",
                "metadata": {},
                "outputs": [],
                "execution_count": None,
            }
            book["cells"].append(
                cell | {"source": "from spiro_diffusion.apps.explorer import explore\nexplore()"}
            )
        target = root / "nbs" / source.relative_to(NBS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(book, ensure_ascii=False), encoding="utf-8")
    shutil.copytree(
        NBS.parent / "bench" / "results", root / "bench" / "results"
    )  # 03 and 05 show what was measured there
    return root / "nbs"


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[str]:
    """JupyterLab on that copy, with a token and settings of its own; yields its address."""
    own = folder.parent / "jupyter"
    own.mkdir()
    env = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(own),
        "JUPYTER_RUNTIME_DIR": str(own),
        "JUPYTERLAB_SETTINGS_DIR": str(own),
        "JUPYTERLAB_WORKSPACES_DIR": str(own),
    }
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        "--ServerApp.port=0",
        "--IdentityProvider.token=spiro",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True",
    ]
    quiet = own / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    with open(own / "lab.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=env, stdout=log, stderr=log
        )
    try:
        note = until(
            lambda: process.poll() is None and list(own.glob("jpserver-*.json")),
            60,
            (own / "lab.log").read_text(),
        )
        yield json.loads(note[0].read_text())["url"]
    finally:
        stop(process)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    profile = tmp_path_factory.mktemp("chromium")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-component-update",
        "--disable-background-networking",
        "--window-size=1400,1000",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
    ]
    process = subprocess.Popen(
        [str(CHROMIUM), *options, "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = profile / "DevToolsActivePort"
        until(lambda: port.is_file() and port.read_text().strip(), 60, "chromium listens")
        yield Page(int(port.read_text().split()[0]))
    finally:
        stop(process)


BOOK = "[...jupyterapp.shell.widgets('main')][0]"
KERNEL = f"{BOOK}.sessionContext.session?.kernel"
CELLS = (
    f"{BOOK}.content.widgets"
    ".filter(c => c.model.type == 'code' && c.model.sharedModel.source.trim())"
)

OUTPUTS = f"{CELLS}.flatMap(c => c.model.sharedModel.outputs)"


def run_all(page: Page, lab: str, path: str, seconds: float = 300) -> int:
    """Open a notebook, click Run, Run All Cells and wait for the end.

    Returns the number of figures that can be seen when one scrolls through.
    """
    page.call("Page.navigate", url=f"{lab}lab/tree/{path}?token=spiro&reset")
    until(
        lambda: page.js(f"window.jupyterapp && {BOOK}?.content?.widgets && {CELLS}.length"),
        60,
        f"{path} is open",
    )
    until(
        lambda: page.js(f"{KERNEL}?.connectionStatus == 'connected' && {KERNEL}.status == 'idle'"),
        60,
        f"{path} has a kernel",
    )
    page.click(".lm-DockPanel .lm-TabBar-tabLabel", Path(path).name)
    page.click(".lm-MenuBar-itemLabel", "Run")
    page.click(".lm-Menu-itemLabel", "Run All Cells")
    ended = (
        f"{CELLS}.every(c => c.model.executionCount !== null && c.model.executionState == 'idle')"
    )
    wrong = (
        f"{OUTPUTS}.filter(o => o.output_type == 'error').map(o => `${{o.ename}}: ${{o.evalue}}`)"
    )
    until(lambda: page.js(f"{ended} || {wrong}.length"), seconds, f"{path} has run")
    assert page.js(wrong) == []
    return page.js(f"""(async () => {{
        const book = {BOOK}.content; let seen = 0;
        for (const [i, cell] of book.widgets.entries()) {{
            if (cell.model.type != 'code') continue;
            const outputs = cell.model.sharedModel.outputs;
            if (!outputs.some(o => o.data && o.data['image/png'])) continue;
            await book.scrollToItem(i, 'start');
            for (let wait = 0; wait < 50; wait++) {{
                const images = [...cell.node.querySelectorAll('.jp-OutputArea img')];
                const wide = m => m.naturalWidth > 100 && m.getBoundingClientRect().width > 100;
                if (images.length && images.every(m => m.complete && wide(m))) {{
                    seen += images.length;
                    break;
                }}
                await new Promise(r => setTimeout(r, 100));
            }}
        }}
        return seen;
    }})()""")


def pngs(page: Page) -> int:
    """Figures among the outputs."""
    return page.js(f"{OUTPUTS}.filter(o => o.data && o.data['image/png']).length")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_numbered_notebook_runs_in_the_browser(
    page: Page, lab: str, folder: Path, name: str
) -> None:
    """In order: each needs what those before it wrote."""
    seen = run_all(page, lab, f"{name}.ipynb")
    page.picture(folder.parent / f"{name}.png")
    assert seen == pngs(page) >= 1, f"{seen} figures are seen"
    page.js(f"{BOOK}.context.save()")
    page.js(f"{BOOK}.sessionContext.shutdown()")
    cells = json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert all(
        c["execution_count"]
        for c in cells
        if c["cell_type"] == "code" and "".join(c["source"]).strip()
    ), "saved with what it shows"


def another_picture(page: Page, held: str, before: str) -> str:
    """The picture that `held` finds, once it is another one than `before`."""
    return until(lambda: (now := page.js(held)) != before and now, 30, "the picture changes")


def test_the_explorers_sliders_redraw(page: Page, lab: str, folder: Path) -> None:
    assert run_all(page, lab, "apps/05_explorer.ipynb") >= 1
    page.js(f"{BOOK}.content.scrollToItem({BOOK}.content.widgets.length - 1, 'start')")
    held = """(() => {
        const m = [...document.querySelectorAll('.jp-OutputArea img.widget-image')].pop();
        if (!m || !m.complete || !m.naturalWidth) return '';
        const c = document.createElement('canvas');
        c.width = m.naturalWidth;
        c.height = m.naturalHeight;
        c.getContext('2d').drawImage(m, 0, 0);
        return c.toDataURL();
    })()"""
    before = until(lambda: page.js(held), 60, "the explorer's picture is seen")
    age = ".jp-OutputArea .widget-readout"
    assert page.js(f"document.querySelector('{age}').textContent") == "45"
    page.click(".jp-OutputArea .noUi-handle")
    page.picture(folder.parent / "explorer_before.png")
    for years in range(46, 50):
        page.key("ArrowRight", 39)
        shown = f"document.querySelector('{age}').textContent == '{years}'"
        until(partial(page.js, shown), 10, f"the slider says {years}")
        before = another_picture(page, held, before)
    page.picture(folder.parent / "explorer_after.png")
