"explore_masking in a real JupyterLab: sliders and clicks redraw the figure. Run with `pytest -m browser` (needs chromium and `pip install -e '.[browser,explore]'`)"
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from jupyter_lab import jupyter_lab

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[1]
SMALL = {'"n": 96, "size": 32': '"n": 24, "size": 48', "epochs     = 40": "epochs     = 12", "ratios     = [0.5, 0.75, 0.9]": "ratios     = [0.75]"}


@pytest.fixture
def lab(tmp_path):
    "JupyterLab on a copy of the notebook with less to train; yields its address"
    nb = json.loads((ROOT/"nbs"/"explore_masking.ipynb").read_text())
    for c in nb["cells"]:
        if "parameters" in c["metadata"].get("tags", []):
            text = "".join(c["source"])
            for a,b in SMALL.items(): assert a in text, a; text = text.replace(a, b)
            c["source"] = text
    (tmp_path/"nb").mkdir()
    (tmp_path/"nb"/"explore.ipynb").write_text(json.dumps(nb))
    with jupyter_lab(tmp_path, tmp_path/"nb"/"explore.ipynb", "--LabApp.expose_app_in_browser=True", VITNB_OUTPUTS_PATH=str(tmp_path/"outputs"),
                     VITNB_CACHE_PATH=str(tmp_path/"cache"), VITNB_WORKSPACE=str(ROOT)) as address: yield address


def changed(page, image, before, seconds=300):
    "The picture after it has become another one"
    end = time.time() + seconds
    while time.time() < end:
        now = image.get_attribute("src")
        if now != before: return now
        time.sleep(.2)
    pytest.fail("the figure did not change")


def test_sliders_and_clicks_redraw_the_figure(lab, tmp_path):
    from playwright.sync_api import sync_playwright
    shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with sync_playwright() as pw:
        browser = pw.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        page = browser.new_page(viewport=dict(width=1500, height=1000))
        page.goto(lab)
        page.locator(".jp-CodeCell").first.wait_for(timeout=90_000)
        page.wait_for_function("document.body.innerText.includes('| Idle')", timeout=90_000)
        time.sleep(3)
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        box = page.locator(".vitnb-click img")
        try: box.wait_for(timeout=240_000, state="attached")
        finally: page.screenshot(path=str(shots/"masking_begin.png"))
        page.wait_for_function("!document.body.innerText.includes('| Busy')", timeout=240_000)
        box.scroll_into_view_if_needed()
        time.sleep(2)
        figure = page.locator(".jupyter-widgets.widget-image, img.widget-image").first
        before = figure.get_attribute("src")
        area = box.bounding_box()
        box.click(position=dict(x=area["width"]*.25, y=area["height"]*.75))
        after = changed(page, figure, before)
        page.wait_for_timeout(1500)
        numbers = [int(o) for o in page.locator(".widget-hslider .widget-readout").all_inner_texts() if o.strip().isdigit()]
        page.get_by_role("button", name="tube").click()
        third = changed(page, figure, after)
        page.wait_for_timeout(1500)
        page.screenshot(path=str(shots/"masking.png"))
        browser.close()
    assert len({before, after, third}) == 3
    assert len(numbers) == 2 and abs(numbers[0] - 36) <= 1 and abs(numbers[1] - 12) <= 1, f"a click at three quarters and a quarter of 48 pixels gave {numbers}"
