"The live figure, seen in a real JupyterLab: run with `pytest -m browser` (needs chromium and `pip install -e '.[browser]'`)"
import os
import shutil
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_lab import jupyter_lab

pytestmark = pytest.mark.browser

TRAIN = """
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import vit_learner
learn = vit_learner(image_loaders(load_set("digits"), augment="shift"), "swin_micro", precision="fp32")
learn.progress.share = .5 # every epoch shall be seen here
learn.fit(12)
"""


@pytest.fixture
def lab(tmp_path):
    "A JupyterLab on a notebook of one training cell; yields its address"
    kernel = dict(name="python3", display_name="python3", language="python") # or JupyterLab asks for one
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TRAIN)], metadata=dict(kernelspec=kernel))
    nbformat.write(nb, tmp_path/"live.ipynb")
    with jupyter_lab(tmp_path, tmp_path/"live.ipynb", "--ServerApp.open_browser=False") as address: yield address


def test_live_figure_is_redrawn_in_place(lab, tmp_path):
    from playwright.sync_api import sync_playwright
    shot = Path(os.environ.get("SCREENSHOTS", tmp_path))/"live.png"
    with sync_playwright() as pw:
        browser = pw.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        page = browser.new_page(viewport=dict(width=1300, height=900))
        page.goto(lab)
        page.locator(".jp-CodeCell").first.wait_for(timeout=90_000)
        page.wait_for_function("document.querySelector('.jp-NotebookPanel-toolbar') !== null", timeout=60_000)
        page.wait_for_function("document.body.innerText.includes('| Idle')", timeout=60_000)
        time.sleep(3) # the editor settles
        for _ in range(10): # until the cell has taken the key: its prompt is no longer empty
            page.locator(".jp-CodeCell .cm-content").first.click()
            page.keyboard.press("Control+Enter")
            time.sleep(2)
            if page.locator(".jp-InputPrompt").first.inner_text().strip() != "[ ]:": break
        img = page.locator(".jp-OutputArea-output img")
        try: img.first.wait_for(timeout=90_000)
        finally: page.screenshot(path=str(shot.with_name("live_begin.png")))
        seen,bars,end = [],set(),time.time()+600
        while time.time() < end:
            src = img.first.get_attribute("src")
            if not seen or seen[-1] != src: seen.append(src)
            if len(seen) == 3: page.screenshot(path=str(shot.with_name("live_early.png")))
            text = page.locator(".jp-OutputArea").first.inner_text()
            bars |= {l for l in text.splitlines() if "batch" in l}
            if "12 epochs done" in text: break
            time.sleep(.1)
        page.screenshot(path=str(shot))
        n_images = img.count()
        browser.close()
    assert "12 epochs done" in text, text[-2000:]
    assert n_images == 1, "one figure in place, not one for each epoch"
    assert len(seen) >= 4, f"the figure changed only {len(seen)} times"
    assert bars, "no line counted the batches"
    assert "epoch 12/12" in text
