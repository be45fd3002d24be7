"What a shell asks of a notebook: values like options, files of parameters, help, names of one's own, accelerate"
import os
import subprocess
import sys

import pytest
from command_helpers import PARAMS, notebook, workspace # noqa: F401

from vitnb.core import repo_root
from vitnb.experiment import asking, cli
from vitnb.experiment.asking import accelerate_lines, marked_values, names_are_ours, notebook_help, read_params_file, unmarked
from vitnb.experiment.notebook import notebook_askable, notebook_params, read_notebook
from vitnb.experiment.run import read_json

ROOT = repo_root(os.path.dirname(__file__))
SWIN = str(ROOT/"nbs"/"train_swin.ipynb")


@pytest.mark.parametrize("value", ["-1e-3", "-5", "-inf", "-x", "--tag", "--", "", "-p"])
def test_a_value_is_a_value_whatever_it_looks_like(value):
    args = cli.parser().parse_args(marked_values(["run", "a.ipynb", "-p", "x", value, "--tag", "t", "--param", "y", "1"]))
    assert unmarked(args.param) == [["x", value], ["y", "1"]] and args.tag == "t"


@pytest.mark.parametrize("text,want", [("epochs: 3\nlr: 1e-3\n", dict(epochs=3, lr=1e-3)), ('{"a": [1, null, true], "b": -2E5}', dict(a=[1, None, True], b=-2e5)), ("", {}), ("\ufeffx: '007'\n", dict(x="007"))])
def test_a_file_says_what_it_says(tmp_path, text, want):
    (tmp_path/"p.yaml").write_text(text, encoding="utf-8")
    assert read_params_file(tmp_path/"p.yaml") == want


@pytest.mark.parametrize("content", [b"- 1\n", b"a: [1\n", b"3\n", b"\xff\xfe\x00", b"1: 2\n", b"!!python/object/apply:os.system [ls]\n"])
def test_a_file_that_says_nothing_is_named(tmp_path, content):
    (tmp_path/"p.yaml").write_bytes(content)
    with pytest.raises(ValueError, match="p.yaml"): read_params_file(tmp_path/"p.yaml")


def test_help_lists_parameters_comments_and_fields():
    said = notebook_help(read_notebook(SWIN), "train_swin.ipynb")
    assert "-p lr " in said and "peak learning rate" in said and "-p ema_decay" in said and "-p family" not in said


@pytest.mark.parametrize("order", [["run", "--help", "NB"], ["run", "NB", "-h"], ["--help", "NB"]])
def test_help_of_a_notebook_is_asked_in_any_order(workspace, capsys, order):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "1/0")
    assert cli.main([str(nb) if part == "NB" else part for part in order]) == 0
    out = capsys.readouterr().out
    assert "-p epochs  1      passes" in out and not (workspace/"out").exists()


@pytest.mark.parametrize("source,ours", [("import torch, numpy as np\n%matplotlib inline", True), ("import my_models", False), ("from .near import x", False), ("@models.register()\ndef mine(): pass", False), ("register_family('x', {})", False), ("from timm.models import register_model\n@register_model\ndef mine(): pass", False), ("!ls\nx = 1", True)])
def test_a_notebook_may_have_names_of_its_own(source, ours): assert names_are_ours(dict(cells=[dict(cell_type="code", source=source)])) == ours


def test_without_accelerate_nothing_is_said(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert accelerate_lines() == []


@pytest.mark.parametrize("command,asked", [(["accelerate", "launch", "--num_processes", "2"], 2), (["x", "--num_processes=3"], 3), (["x", "--config_file", "FILE"], 2)])
def test_what_accelerate_was_asked_for_is_said(monkeypatch, tmp_path, command, asked):
    (tmp_path/"two.yaml").write_text("distributed_type: MULTI_CPU\nmixed_precision: bf16\nnum_processes: 2\n")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr(asking, "_launch_command", lambda: [str(tmp_path/"two.yaml") if part == "FILE" else part for part in command])
    said = "\n".join(accelerate_lines())
    assert "processes 1, mixed precision bf16" in said and f"asked for {asked} processes, and 1 runs" in said and "-p precision bf16" in said


def test_one_process_that_was_asked_for_is_only_said(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(asking, "_launch_command", lambda: ["--num_processes", "1"])
    assert accelerate_lines() == ["started by accelerate: processes 1, mixed precision no"]


REFUSED = [(["weight_decay", "-1e-3"], "weight_decay=-0.001 must be"), (["epochs", "1.5"], "epochs=1.5"), (["epochs", "-3"], "epochs=-3"), (["lr", "nan"], "lr='nan'"), (["lr", "1e999"], "lr=inf"),
    (["data", "2024"], "data='2024' is no set"), (["recipe", "digit"], "did you mean 'digits'"), (["arch", "swin_tinny"], "did you mean 'swin_tiny'"), (["schedule", "cosin"], "did you mean 'cosine'"),
    (["momentum", ".9"], "does not use it"), (["bs", "'32'"], "bs='32'"), (["seed", "-1"], "seed=-1"), (["tag", "a/b"], "folder name"), (["more", '{"compile": 1}'], "compile=1"), (["recipe", "imagenet"], "cannot be downloaded"),
    (["model_kw", "[1]"], "model_kw"), (["tta", "flop"], "did you mean"), (["pretrained", "3"], "pretrained=3"), (["betas", "(.9, 1)"], "betas"), (["cache", "0"], "cache=0"), (["epochs", "True"], "epochs=True")]


@pytest.mark.parametrize("pair,says", REFUSED)
def test_wrong_parameters_of_a_training_leave_nothing(workspace, capfd, pair, says):
    assert cli.main(["run", SWIN, "-p", *pair]) == 2
    assert says in capfd.readouterr().err and not (workspace/"outputs").exists()


def test_a_refusal_takes_less_than_two_seconds(tmp_path):
    "Of the process's own time, which does not depend on who else computes; with torch it is three times that"
    code = "import time, vitnb.experiment.cli as cli\ncode = cli.main(['run', %r, '-p', 'arch', 'swin_tinny'])\nprint(code, time.process_time())" % SWIN
    env = {**os.environ, "VITNB_OUTPUTS_PATH":str(tmp_path/"out")}
    code,seconds = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout.split()
    assert code == "2" and float(seconds) < 1 and not (tmp_path/"out").exists()


def test_a_file_of_parameters_runs_and_what_is_typed_wins(workspace, capfd):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "print('got', epochs, lr, clip)")
    (workspace/"p.yaml").write_text("epochs: 3\nlr: 2e-3\nclip: 0.5\n")
    assert cli.main(["run", str(nb), "-f", str(workspace/"p.yaml"), "-p", "epochs", "4"]) == 0
    assert "got 4 0.002 0.5" in capfd.readouterr().out
    (workspace/"p.yaml").write_text("epoch: 3\n")
    assert cli.main(["run", str(nb), "-f", str(workspace/"p.yaml")]) == 2
    assert "did you mean 'epochs'" in capfd.readouterr().err


def test_a_kernel_that_is_not_there_is_refused_before_a_folder_is_made(workspace, capfd):
    nb = notebook(workspace/"train_demo.ipynb", PARAMS, "1")
    assert cli.main(["run", str(nb), "--kernel", "my-old-env"]) == 2
    assert "unknown kernel 'my-old-env'" in capfd.readouterr().err and not (workspace/"out").exists()


def test_types_tuples_and_magics_arrive_in_this_pythons_kernel_whatever_the_notebook_says(workspace, capfd):
    source = "%matplotlib inline\nx: float = 1e-3 # a rate\nt = (1, 2)\nd = {'a': None}\nz = [1, 2]\nname: str = 'a'"
    show = "import sys\nfrom vitnb.experiment.run import Run\nrun = Run('demo', globals())\nprint('got', x, t, d, z, name, sys.executable)"
    nb = notebook(workspace/"typed copy (1).ipynb", source, show)
    nb.write_text(nb.read_text().replace('"name": "python3"', '"name": "my-old-env"'))
    pairs = dict(x="-1e-3", t="(3, 4)", d='{"a": {"b": [1, null, true]}}', z="[-1, false]", name="007")
    args = [part for name,value in pairs.items() for part in ("-p", name, value)]
    assert cli.main(["run", str(nb), *args]) == 0
    assert f"got -0.001 (3, 4) {{'a': {{'b': [1, None, True]}}}} [-1, False] 007 {sys.executable}" in capfd.readouterr().out
    (folder,) = (workspace/"out").glob("typed_copy_1_/*")
    assert read_json(folder/"params.json")["t"] == [3, 4]


OPEN = "from vitnb.experiment.run import Run\nrun = Run('train_demo', globals(), tag)"
CONFIG = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nmixed_precision: bf16\nnum_machines: 1\nnum_processes: 2\nuse_cpu: true\n"


def accelerate(tmp_path, *options, **env):
    "A real `accelerate launch` of `vitnb run NOTEBOOK -p epochs 2`, whose notebook says what its kernel finds"
    nb = notebook(tmp_path/"train_demo.ipynb", PARAMS, OPEN, "import os\nrun.finish(precision=os.environ.get('ACCELERATE_MIXED_PRECISION', ''), rank_of=int(os.environ.get('WORLD_SIZE', 1)))")
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "vitnb.experiment.cli", "run", nb]
    variables = {name:value for name,value in os.environ.items() if not name.startswith(("ACCELERATE_", "VITNB_"))} | dict(env, VITNB_OUTPUTS_PATH=str(tmp_path/"out"))
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=200, env=variables, stdin=subprocess.DEVNULL)


def test_accelerates_own_two_cpus_are_one_process_and_its_bf16_does_not_act_and_both_are_said(tmp_path):
    (tmp_path/"two.yaml").write_text(CONFIG)
    done = accelerate(tmp_path, "--config_file", tmp_path/"two.yaml")
    (result,) = tmp_path.glob("out/*/*/result.json")
    assert done.returncode == 0 and read_json(result) == {"precision":"no", "rank_of":1}, done.stderr
    for said in ("processes 1, mixed precision bf16", "asked for 2 processes, and 1 runs", "--processes 2", "bf16 does not act", "-p precision bf16"): assert said in done.stderr


def test_two_ranks_of_accelerate_say_it_once_and_run(tmp_path):
    done = accelerate(tmp_path, "--multi_gpu", "--num_processes", "2", "--mixed_precision", "bf16", "--main_process_port", "0", ACCELERATE_USE_CPU="true")
    (result,) = tmp_path.glob("out/*/*/result.json")
    assert done.returncode == 0 and read_json(result) == {"precision":"no", "rank_of":2}, done.stderr
    assert done.stderr.count("bf16 does not act") == 1 and "and 1 runs" not in done.stderr


def test_what_accelerate_asks_for_and_would_not_happen_is_refused_at_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert cli.main(["run", str(notebook(tmp_path/"train_demo.ipynb", PARAMS, OPEN))]) == 2
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4" in (err := capfd.readouterr().err) and "accumulate=k" in err and not (tmp_path/"out").exists()


STRANGE = [(["data", "~nobody_here/x"], "is no path"), (["data", "/dev/null"], "is no set and not there"), (["data", " "], "names nothing"), (["arch", ""], "arch=''"), (["seed", "9"*30], "below 2**63"),
    (["pretrained", "nowhere.pth"], "pretrained='nowhere.pth' is not there"), (["pretrained", "/nowhere/x.ckpt::ema"], "is not there"), (["pretrained", "nowhere/run"], "is not there"),
    (["pattern", "(("], "regular expression"), (["pattern", "abc"], "a group called label"), (["resume", "nowhere.pth"], "no checkpoint"), (["hyperparams", "~nobody_here/x.json"], "is no path")]


@pytest.mark.parametrize("pair,says", STRANGE, ids=lambda o: "=".join(o)[:40] if isinstance(o, list) else "")
def test_strange_values_are_refused_at_once_and_leave_no_folder(workspace, capfd, pair, says):
    assert cli.main(["run", SWIN, "-p", *pair]) == 2
    assert says in (err := capfd.readouterr().err) and err.startswith("vitnb run: ") and not (workspace/"out").exists(), err


@pytest.mark.parametrize("options,says", [(["--port", "99999"], "from 1 to 65535"), (["--processes", "2", "--port", "-1"], "from 1 to 65535"), (["--output", "FOLDER"], "is a folder"), (["--output", "FILE/x.ipynb"], "is no folder")])
def test_strange_options_are_refused_at_once_and_leave_no_folder(workspace, capfd, options, says):
    (workspace/"file").touch()
    options = [part.replace("FOLDER", str(workspace)).replace("FILE", str(workspace/"file")) for part in options]
    assert cli.main(["run", SWIN, *options]) == 2
    assert says in capfd.readouterr().err and not (workspace/"out").exists()


def test_a_name_that_a_file_of_parameters_gives_twice_is_refused(tmp_path):
    (tmp_path/"p.yaml").write_text("epochs: 2\nmore: {a: 1, a: 2}\n")
    with pytest.raises(ValueError, match="p.yaml.*'a' is given twice"): read_params_file(tmp_path/"p.yaml")
    (tmp_path/"p.yaml").write_text("epochs: 2\nlr: 1e-3\nepochs: 3\n")
    with pytest.raises(ValueError, match="'epochs' is given twice"): read_params_file(tmp_path/"p.yaml")


NB = ROOT/"nbs"
INSIDE = [("train_swin", ["model_kw", '{"window_siz": 2}'], "did you mean 'window_size'"), ("train_swin", ["aug_kw", '{"padding": -1}'], "from 0"), ("train_swin", ["aug_kw", '{"pading": 1}'], "did you mean 'padding'"),
    ("train_swin", ["stats", "nope"], "unknown stats 'nope'"), ("train_swin", ["monitor", "nope"], "no column that anything writes"), ("train_swin", ["task_weights", '{"leaf": 2}'], "one task"),
    ("train_swin", ["loss_kw", '{"gamma": 2}'], "without a loss"), ("train_swin", ["arch", "timm/nothing_there"], "timm has no network"), ("train_swin", ["min_lr", "1"], "min_lr=1.0 is above lr="),
    ("train_swin", ["data", "notes.txt"], "a text without columns"), ("pretrain_hvit", ["labels", "x"], "labels='x' must be True or False"), ("sweep_chest", ["space", "nope"], "space='nope' must be"),
    ("sweep_chest", ["trials", "0"], "trials=0 must be a whole number from 1"), ("sweep_swin", ["runs", "0"], "runs=0 must be"), ("sweep_swin", ["space", '{"lr": []}'], "at least one value")]


@pytest.mark.parametrize("stem,pair,says", INSIDE, ids=lambda o: "=".join(o)[:40] if isinstance(o, list) else "")
def test_what_does_not_fit_is_refused_at_once_and_leaves_no_folder(workspace, capfd, stem, pair, says):
    (workspace/"notes.txt").write_text("to do\nlabel the rest\n")
    pair = [part.replace("notes.txt", str(workspace/"notes.txt")) for part in pair]
    assert cli.main(["run", str(NB/f"{stem}.ipynb"), "-p", *pair]) == 2
    assert says in (err := capfd.readouterr().err) and err.startswith("vitnb run: ") and not (workspace/"out").exists(), err


def test_what_is_inside_is_known_without_torch(tmp_path):
    "Of the process's own time, as above; the names of timm are in its files"
    code = "import sys, time, vitnb.experiment.cli as cli\ncode = cli.main(['run', %r, '-p', 'arch', 'timm/nothing_there'])\nprint(code, 'torch' in sys.modules, time.process_time())" % SWIN
    code,torch,seconds = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "VITNB_OUTPUTS_PATH":str(tmp_path/"out")}).stdout.split()
    assert (code, torch) == ("2", "False") and float(seconds) < 2


@pytest.mark.parametrize("stem", sorted(path.stem for path in NB.glob("*.ipynb") if path.stem != "index"))
def test_each_experiment_as_it_stands_is_accepted(stem):
    "With the data that its recipe names, where that is here"
    nb = read_notebook(NB/f"{stem}.ipynb")
    notebook_askable(nb).refuse(notebook_params(nb), named=names_are_ours(nb), workspace=NB.parent)


@pytest.mark.parametrize("text,says", [('{"epochs": 3,}', "is not JSON"), ("epochs: 3", "is not JSON"), ('{"lr": NaN}', "no number of JSON"), ('{"a": 1, "a": 2}', "given twice"), ('[1]', "holds a list"), ('{"a": {"b": 1, "b": 2}}', "given twice")])
def test_a_json_is_read_as_json(tmp_path, text, says):
    (tmp_path/"p.json").write_text(text)
    with pytest.raises(ValueError, match=f"p.json.*{says}"): read_params_file(tmp_path/"p.json")
    (tmp_path/"p.json").write_text('\ufeff{"lr": 1e-3, "more": {"cache": false}}')
    assert read_params_file(tmp_path/"p.json") == dict(lr=1e-3, more=dict(cache=False))
