"The table of runs: what differs, scores with interval and direction, pairs of seeds, importance, export"
import html
import json
import time
import zlib
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from compare_helpers import outputs, scored, write_run # noqa: F401, a fixture

from vitnb.experiment.compare import Comparison, compare, differing_params, open_run, paired_differences, run_page
from vitnb.experiment.comparefigures import draw_comparison, param_importance
from vitnb.experiment.folders import read_runs
from vitnb.experiment.run import load_families
from vitnb.parameters import askable
from vitnb.runfolder import write_json


def test_only_what_differs_among_the_runs_that_are_shown(tmp_path):
    "Three runs with 40 equal parameters and 2 different ones: 2 columns; all of them on request"
    for n in range(3): scored(tmp_path/"a"/str(n), .9, **{f"p{i}":i for i in range(40)}, lr=.1*n, arch="ab"[n > 0])
    runs = read_runs(root=tmp_path)
    assert differing_params(runs) == ["lr", "arch"] and len(differing_params(runs, True)) == 42
    assert differing_params(runs[1:]) == ["lr"], "it applies to the runs shown"


def test_one_and_one_point_nought_are_the_same(tmp_path):
    for n,epochs in enumerate((1, 1.0)): scored(tmp_path/"a"/str(n), .9, epochs=epochs, flag=bool(n), tag=f"t{n}", note=f"n{n}")
    assert differing_params(read_runs(root=tmp_path)) == ["flag"], "a tag is the name, a note changes nothing, True is not 1"


def test_the_best_is_first_with_interval_direction_and_difference(outputs):
    table = compare(root=outputs, score="test_accuracy", baseline="lr0.1_1")
    frame = table.frame()
    assert frame.run.tolist() == ["lr0.1_1", "lr0.2_2", "lr0.1_2", "lr0.2_1", "lr0.2_0", "lr0.1_0"]
    assert frame.test_accuracy_difference[0] == 0 and np.isclose(frame.test_accuracy_difference[2], .1)
    assert np.allclose(frame.test_accuracy_hi - frame.test_accuracy, .02) and frame.attrs["better"] == dict(test_accuracy="max")
    assert list(frame)[:3] == ["run", "lr", "seed"] and "test_n" not in frame and "test_accuracy ↑" in str(table)


def test_a_score_says_on_how_many_known_entries_it_rests(tmp_path):
    for name,kappa in dict(some=.8, none=None).items():
        result = dict(test_kappa=kappa, test_kappa_lo=kappa, test_kappa_hi=kappa, test_kappa_n=523 if kappa else 0, test_n=94)
        write_run(tmp_path/"train_a"/name, params=dict(lr=len(name)), result=result, columns=dict(kappa=dict(better="max")))
    table = compare(root=tmp_path, score="test_kappa")
    assert table.frame().test_kappa_n.tolist() == [523, 0] and "0.8 (0.8 to 0.8) n=523" in str(table) and "undefined (n=0)" in str(table)


def test_what_a_damaged_recipe_hides_is_no_difference(tmp_path):
    "The table does not fill up with all that the others have; a number too large for a float is drawn as a word"
    for run in ("one", "two"): folder = scored(tmp_path/"a"/run, .5, lr=10**400 if run == "one" else .1)
    for folder in (tmp_path/"a").iterdir(): write_run(folder, recipe=dict(bs=8, wd=.1, seed=1))
    (folder/"recipe.json").write_text("{")
    table = compare(root=tmp_path)
    assert table.params == ["lr"] and "recipe.json: is not JSON" in str(table)
    assert not isinstance(draw_comparison(table, "test_accuracy")["parallel"], str)


def test_a_failed_run_keeps_its_place_and_its_epochs(outputs):
    write_run(outputs/"train_a/broken", params=dict(lr=.3, seed=0, bs=8), status=dict(status="failed", error="ValueError: no"),
              history=[dict(epoch=1, accuracy=.5), dict(epoch=2, accuracy=.6)], columns=dict(accuracy=dict(better="max")))
    frame = compare(root=outputs, score="test_accuracy").frame().set_index("run")
    assert frame.status["broken"] == "failed" and frame.epochs_done["broken"] == 2 and frame.index[-1] == "broken"
    assert compare(root=outputs, score="accuracy").frame().set_index("run").accuracy["broken"] == .6


@pytest.mark.parametrize("how,says", [(dict(score="test_acuracy"), "did you mean 'test_accuracy'"), (dict(score="test_n"), "give --better"),
                                      (dict(baseline="nobody"), "is none of these runs"), (dict(baseline="0"), "is none of these")])
def test_a_wrong_question_says_what_to_ask(outputs, how, says):
    with pytest.raises(ValueError, match=says): compare(root=outputs, **how)


def test_what_is_written_is_read_back(outputs, tmp_path):
    table = compare(root=outputs, score="test_accuracy")
    frame = pd.read_csv(table.save(tmp_path/"t.csv"))
    assert frame.test_accuracy.tolist() == table.frame().test_accuracy.tolist()
    lines = table.save(tmp_path/"t.md").read_text().splitlines()
    assert len(lines) == 8 and len({line.count("|") for line in lines}) == 1 and "0.932 (0.912 to 0.952)" in lines[2]
    with pytest.raises(ValueError, match="neither"): table.save(tmp_path/"t.txt")


def test_a_parameter_is_not_lost_to_a_column_of_that_name(tmp_path):
    for n in range(2): scored(tmp_path/"a"/str(n), .9, epochs=n, status=n, test_accuracy=n)
    frame = compare(root=tmp_path).frame()
    assert frame["epochs"].tolist() == frame["params.status"].tolist() == frame["params.test_accuracy"].tolist() == [0, 1]
    assert frame.status.tolist() == ["finished"]*2 and frame.epochs_done.tolist() == [3, 3] and frame.test_accuracy.tolist() == [.9, .9]


def test_other_data_is_said(outputs):
    for n,data in enumerate("ab"): write_run(outputs/"train_b"/str(n), params=dict(lr=n), environment=dict(data=data))
    assert "2 different data sets" in compare("train_b", outputs).notes()[0] and not compare("train_a", outputs).notes()


def test_pairs_of_seeds_find_what_single_intervals_hide(outputs):
    "Seeds differ by 0.2, the rate by 0.03: the pairs say so; the interval is Student's of the differences"
    found = paired_differences(read_runs(root=outputs), "lr", "test_accuracy", baseline=[.1])
    row = found[found.lr == .2].iloc[0]
    own = np.array([.03, .031, .032])
    half = scipy.stats.t.ppf(.975, 2)*own.std(ddof=1)/np.sqrt(3)
    assert np.allclose([row.difference, row.lo, row.hi], [.031, .031 - half, .031 + half]) and row.beyond_noise is True
    base = found[found.lr == .1].iloc[0]
    assert base.difference == 0 and base.beyond_noise is None and found.lr.tolist() == [.2, .1]


@pytest.mark.parametrize("gain,beyond", [(.0125, None), (.1, None), (0., False)])
def test_differences_that_are_all_alike_have_no_interval(tmp_path, gain, beyond):
    "Two seeds on 80 images agree by chance now and then"
    for seed in range(2):
        for lr in (.1, .2): scored(tmp_path/f"lr{lr}_{seed}", .7 + .1*seed + gain*(lr > .1), lr=lr, seed=seed)
    found = paired_differences(read_runs(root=tmp_path), "lr", "test_accuracy", baseline=[.1]).set_index("lr")
    assert found.beyond_noise[.2] is beyond and np.isclose(found.difference[.2], gain)


@pytest.mark.parametrize("lost,says", [(["status.json", "recipe.json"], "status.json: is not there"), (["recipe.json"], "recipe.json: is not there"), (["params.json"], "params.json: is not there")])
def test_a_run_that_lost_a_file_makes_no_parameter_differ(tmp_path, lost, says):
    "Without its recipe each of its fifty fields would differ"
    for n in range(3):
        folder = scored(tmp_path/f"run{n}", .7, lr=.1*(n + 1), arch="a")
        (folder/"recipe.json").write_text(json.dumps(dict(bs=8, drop_path=.1)))
        (folder/".sums").write_text("".join(f"{zlib.crc32(path.read_bytes()):08x} {path.name}\n" for path in folder.glob("*.json")))
    for name in lost: (folder/name).unlink()
    table = compare(root=tmp_path)
    assert table.params == ["lr"] and says in table.ignored[folder] and len(table) == 3


def test_noise_is_called_noise_and_one_pair_says_nothing(tmp_path):
    for seed,gain in enumerate((.1, -.1, .05)): [scored(tmp_path/"a"/f"{lr}{seed}", .5 + lr*gain, lr=lr, seed=seed) for lr in (0, 1)]
    scored(tmp_path/"a"/"alone", .9, lr=2, seed=0)
    found = paired_differences(read_runs(root=tmp_path), ["lr"], "test_accuracy", baseline=[0]).set_index("lr")
    assert found.beyond_noise[1] is False and found.pairs[2] == 1 and found.beyond_noise[2] is None
    with pytest.raises(ValueError, match="no run has"): paired_differences(read_runs(root=tmp_path), "lr", "test_accuracy", baseline=[7])


def test_importance_finds_the_parameter_that_acts(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(40):
        lr,arch,idle = rng.random(), "abc"[n % 3], rng.random()
        scored(tmp_path/"a"/f"{n:02}", .3*lr + .1*(arch == "b"), lr=lr, arch=arch, idle=idle)
    found = param_importance(read_runs(root=tmp_path), "test_accuracy")
    assert list(found)[:2] == ["lr", "arch"] and found["idle"] < .1 and np.isclose(sum(found.values()), 1)
    assert param_importance(read_runs(root=tmp_path)[:3], "test_accuracy") == {}


@pytest.mark.parametrize("own,link", [(None, "out/train_a/lr0.1_0/train_a.ipynb"), ("out/compare_runs/one", "../../train_a/lr0.1_0/train_a.ipynb")])
def test_links_lead_from_where_the_page_is(outputs, monkeypatch, own, link):
    "A launched notebook ends up in its run folder, whatever folder its kernel was started in"
    (outputs/"train_a/lr0.1_0/train_a.ipynb").touch()
    monkeypatch.chdir(outputs.parent)
    if own: monkeypatch.setenv("VITNB_RUN_DIR", str(outputs.parent/own))
    else: monkeypatch.delenv("VITNB_RUN_DIR", raising=False)
    assert f'href="{link}"' in Comparison(read_runs(root=outputs))._repr_html_()


def test_a_run_shows_its_notebook(outputs):
    import nbformat
    cell = nbformat.v4.new_code_cell("1 + 1", execution_count=1, outputs=[nbformat.v4.new_output("stream", text="forty-two")])
    folder = outputs/"train_a/lr0.1_0"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder/"train_a.ipynb")
    before = sorted(folder.iterdir())
    import base64
    page = base64.b64decode(open_run(folder).src.partition("base64,")[2]).decode()
    assert "forty-two" in html.unescape(page) and sorted(folder.iterdir()) == before
    assert "train_a.ipynb" in Comparison(read_runs(root=outputs))._repr_html_()
    (folder/"train_a.ipynb").write_text((folder/"train_a.ipynb").read_text().replace("stdout", "nowhere").replace('"execution_count": 1', '"execution_count": "x"'))
    with pytest.raises(ValueError, match="train_a.ipynb is no notebook that can be shown"): open_run(folder)
    for spoilt in (dict(id=["a"]), dict(cell_type=3)): # what checks a notebook trips over these itself
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
        nb.cells[0] |= spoilt
        (folder/"train_a.ipynb").write_text(json.dumps(nb))
        with pytest.raises(ValueError, match="train_a.ipynb"): open_run(folder)


@pytest.mark.parametrize("asked,says", [({}, None), (dict(score="nonsense"), "has a score 'nonsense'"), (dict(baseline="nowhere"), "'nowhere' is none of these runs"), (dict(where=["nosuch"]), "there are no runs at 'nosuch'"),
    (dict(score="nonsense", smoke=True), None), (dict(where=["later"]), None)])
def test_what_a_notebook_compares_is_looked_at_before_it_runs(outputs, monkeypatch, asked, says):
    "Runs of the places in its cell may be made by the notebook itself"
    monkeypatch.setenv("VITNB_OUTPUTS_PATH", str(outputs))
    load_families()
    shown = dict(where=["later"], score="test_accuracy", baseline="", better="", smoke=False)
    def check(): askable[""].refuse({**shown, "where":["train_a"], **asked}, shown, named=True, workspace=outputs)
    if says is None: return check()
    with pytest.raises(ValueError, match=says): check()


def test_the_page_of_a_notebook_runs_nothing(outputs):
    "Outputs may be somebody else's: the page is a frame that may do nothing, in which nothing may be loaded; widgets, which are scripts, are left out"
    import nbformat
    svg = "<svg xmlns='http://www.w3.org/2000/svg'>\n<script>alert(1)</script>\n</svg>" # of several lines, which a file keeps as a list
    shown = [nbformat.v4.new_output("display_data", {"text/html":"</iframe><script>alert(2)</script>"}), nbformat.v4.new_output("display_data", {"image/svg+xml":svg})]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("\"><script>alert(3)</script>"), nbformat.v4.new_code_cell("1", outputs=shown)])
    nb.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json":dict(version_major=2, version_minor=0, state={"a":dict(model_name="</script>")})}
    folder = outputs/"train_a/lr0.1_0"
    nbformat.write(nb, folder/"train_a.ipynb")
    seen = []
    class Seen(HTMLParser):
        def handle_starttag(self, tag, attrs): seen.append((tag, dict(attrs)))
    Seen().feed(run_page(folder))
    (_, frame), = [part for part in seen if part[0] == "iframe"]
    assert [tag for tag,_ in seen] == ["meta", "title", "iframe"] and frame["sandbox"] is None
    inside = frame["srcdoc"]
    assert inside.partition("<head>")[2].startswith("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:;")
    assert "alert(2)" in inside and "widget-state" not in inside and "alert(1)" not in inside


def test_a_hostile_name_is_no_markup(tmp_path):
    scored(tmp_path/"a"/"<b>x", .9, lr="<script>|")
    scored(tmp_path/"a"/"y", .9, lr="b")
    table = compare(root=tmp_path)
    for shown in (table._repr_html_(), table.to_markdown()): assert "<script>" not in shown and "<b>" not in shown


def test_hostile_parameters_scores_and_folders_are_no_markup(tmp_path, monkeypatch):
    "Names of columns too; a folder that is called like a script is none, and MathJax finds no formula"
    import nbformat
    bad = "<img src=x onerror=g()>$x$"
    folder = tmp_path/"javascript:g()"/"r"
    for n in (1, 2): scored(folder/str(n), .9, **{bad:n})
    write_json(folder/"1/result.json", {bad:.5, "test_accuracy":.9})
    nbformat.write(nbformat.v4.new_notebook(), folder/"1/train_a.ipynb")
    monkeypatch.chdir(tmp_path)
    table = compare(root=tmp_path)
    for shown in (table._repr_html_(), table.to_markdown()): assert "<img" not in shown and "$" not in shown, shown
    assert "href=\"javascript%3A" in table._repr_html_()


def test_time_grows_with_the_number_of_runs(tmp_path):
    "Four times the runs: no more than eight times the time, and never near five seconds for a thousand"
    def seconds(n):
        for i in range(n): scored(tmp_path/str(n)/"a"/f"{i:04}", .9, lr=i, seed=i)
        start = time.process_time()
        str(compare(root=tmp_path/str(n), score="test_accuracy"))
        return time.process_time() - start
    seconds(10)
    few,many = seconds(100), seconds(400)
    assert many < 8*max(few, .05) and many < 2
