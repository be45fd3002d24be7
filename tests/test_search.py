"Searches: what a space may say, what a study draws and prunes, and that no kill, no second worker and no failing trial upsets it"
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnb.experiment.cli import main
from vitnb.experiment.run import read_json
from vitnb.experiment.space import active_params, check_space, decode, spaces, suggest
from vitnb.parameters import check_params

optuna = pytest.importorskip("optuna")

from vitnb.callback.limit import TrainingStopped # noqa: E402
from vitnb.callback.trial import StudyReporter, TrialReport # noqa: E402
from vitnb.experiment.search import best_params, search, study_rows # noqa: E402
from vitnb.experiment.study import make_plan, make_sampler, open_study # noqa: E402
from vitnb.storage import open_storage # noqa: E402

# A notebook that trains without training: at each of 4 epochs it reports a value that grows towards one of x, and goes on from where it was killed
CELLS = ["""x    = 0.    # best at 2
kind = "a"   # a or b
bonus = 0.   # acts with kind b
epochs = 4   # passes
nap  = 0.    # seconds an epoch
tag  = ""    # added to the run folder""",
"""import json, os, time
from pathlib import Path
folder = Path(os.environ["VITNB_RUN_DIR"])
if x > 5: raise ValueError(f"x={x} is too far")
(folder/"params.json").write_text(json.dumps(dict(x=x, kind=kind, bonus=bonus, tag=tag)))
(folder/"columns.json").write_text(json.dumps(dict(near=dict(better="max"))))
rows = json.loads((folder/"history.json").read_text()) if (folder/"history.json").is_file() else []
with (folder/"began.txt").open("a") as file: file.write(f"{len(rows)}\\n")
for epoch in range(len(rows) + 1, epochs + 1):
    time.sleep(nap)
    rows.append(dict(epoch=epoch, near=(bonus - (x - 2)**2)*(1 - .5**epoch)))
    (folder/"history.json").write_text(json.dumps(rows))"""]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    "A workspace with a notebook that pretends"
    (tmp_path/"settings.ini").write_text("[vitnb]\noutputs_path = out\ndevice = cpu\n")
    for k in [k for k in os.environ if k.startswith("VITNB_")]: monkeypatch.delenv(k)
    cells = [dict(cell_type="code", id=f"c{i}", execution_count=None, outputs=[], source=s, metadata=dict(tags=["parameters"] if i == 0 else []))
             for i,s in enumerate(CELLS)]
    kernel = dict(kernelspec=dict(name="python3", language="python", display_name="python3"))
    (tmp_path/"train_demo.ipynb").write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


SPACE = dict(x=dict(low=0., high=4.), kind=["a", "b"], bonus=dict(low=0., high=1., when=dict(kind="b")))


def demo(workspace, space=None, **more):
    return make_plan(workspace/"train_demo.ipynb", space or SPACE, "near", "max", **{"pruner":dict(name="none"), **more})


def drawn(study): return [{k:row[k] for k in ("x", "kind", "bonus") if k in row} for row in study_rows(study) if row["state"] == "complete"]


# -- spaces ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("space,message", [
    ({}, "must be a dictionary"), (dict(lr=3), "must be a list of values"), (dict(lr=[]), "at least one value"),
    (dict(lr=[.1, .1]), "twice"), (dict(lr=dict(low=1)), "numbers low and high"), (dict(lr=dict(low=2, high=1)), "lesser"),
    (dict(lr=dict(low=0, high=1, log=True)), "no logarithm"), (dict(lr=dict(low=1, high=2, log=True, step=1)), "log and step"),
    (dict(lr=dict(low=1, high=2, step=0)), "step above 0"), (dict(lr=dict(low=1, hihg=2)), "did you mean 'high'"),
    (dict(lr=dict(values=[1], low=1)), "values and low"), (dict(lr=dict(low=1, high=2, when=dict(opt="a"))), "further up"),
    (dict(bs=dict(low=1, high=2), lr=dict(low=1, high=2, when=dict(bs=1))), "range and no choice"),
    (dict(opt=["a"], lr=dict(low=1, high=2, when=dict(opt=["a", "b"]))), "none of"),
    (dict(lrr=[1.]), "did you mean 'lr'"), (dict(lr=["high"]), "lr='high' is a str"), (dict(bs=dict(low=.5, high=2.)), "bs=0.5 is a float")])
def test_a_space_that_cannot_be_meant_is_refused(space, message):
    with pytest.raises(ValueError, match=message): check_space(space, dict(lr=.1, bs=8, opt="a"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(spaces)))
def test_whatever_is_drawn_is_inside_the_space_and_acts(seed, name):
    "The second implementation: each condition read on its own"
    space = check_space(spaces[name])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    params = suggest(trial, space)
    assert decode(space, trial.params) == params == active_params(space, params)
    for k,v in params.items():
        entry = space[k]
        assert v in entry["values"] if "values" in entry else entry["low"] <= v <= entry["high"]
    for k,entry in space.items():
        acts = all(params.get(o) in (w if isinstance(w, list) else [w]) for o,w in entry.get("when", {}).items())
        assert (k in params) == acts
    if name in ("basic", "chest"):
        assert ("momentum" in params) == (params["optimizer"] == "sgd")
        assert ("weight_decay" in params) == (params["optimizer"] in ("adamw", "sgd"))


def test_the_guides_space_is_the_guides():
    space = check_space(spaces["chest"])
    assert space["optimizer"]["values"] == ["adamw", "adam", "sgd"] and space["bs"]["values"] == [16, 32, 64, 128]
    ends = {k:(v["low"], v["high"], v.get("log", False)) for k,v in space.items() if "low" in v}
    assert ends == dict(lr=(1e-5, 1e-1, True), unknown_weight=(.1, 1., False), early_stop=(5, 20, False),
                        weight_decay=(1e-6, 1e-2, True), momentum=(.5, .99, False))
    assert isinstance(ends["early_stop"][0], int)


def test_lists_and_dictionaries_can_be_chosen():
    space = check_space(dict(milestones=[[.5], [.5, .75]], kw=[None, dict(depth=2)], flag=[True, False]))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [suggest(study.ask(), space) for _ in range(30)]
    assert {json.dumps(f["milestones"]) for f in found} == {"[0.5]", "[0.5, 0.75]"}
    assert {json.dumps(f["kw"]) for f in found} == {"null", '{"depth": 2}'}
    assert {f["flag"] for f in found} == {True, False}


# -- studies -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("args,message", [
    (dict(space=dict(y=[1.])), "unknown parameter 'y'"), (dict(score="test_near"), "of the test split"),
    (dict(score="zones/test_f1"), "of the test split"), (dict(better="up"), "unknown better"), (dict(pick="median"), "unknown pick"),
    (dict(params=dict(kind="a")), "given and searched"), (dict(params=dict(nap=[1])), "nap="), (dict(space=dict(tag=["a"])), "'tag' of a trial"),
    (dict(sampler=dict(name="tpee")), "did you mean 'tpe'"), (dict(pruner=dict(name="median", warmup=1)), "median cannot be made"),
    (dict(sampler=dict(name="tpe", seed="x")), "seed='x'"), (dict(picks="last"), "did you mean 'pick'")])
def test_a_plan_that_cannot_be_meant_is_refused(workspace, args, message):
    with pytest.raises(ValueError, match=message):
        make_plan(workspace/"train_demo.ipynb", **{**dict(space=SPACE, score="near", better="max"), **args})


def test_a_study_that_exists_with_another_plan_is_refused(workspace):
    open_study("s", demo(workspace), root=workspace)
    open_study("s", demo(workspace), root=workspace)
    for plan,what in [(demo(workspace, dict(SPACE, x=dict(low=0., high=3.))), "space.x.high: 4.0 -> 3.0"),
                      (demo(workspace, params=dict(nap=1.)), "params.nap: None -> 1.0"), (demo(workspace, pick="last"), "pick: 'best' -> 'last'"),
                      (demo(workspace, dict(kind=SPACE["kind"], x=SPACE["x"], bonus=SPACE["bonus"])), "order of the space")]:
        with pytest.raises(ValueError, match=what): open_study("s", plan, root=workspace)


def test_a_foreign_study_is_refused(workspace):
    optuna.create_study(study_name="s", storage=open_storage(workspace/"x.db"))
    with pytest.raises(ValueError, match="not made by vitnb search"): open_study("s", demo(workspace), workspace/"x.db", workspace)


@pytest.mark.parametrize("storage", ["missing/study.db", "postgresql://me:secret@127.0.0.1:9/studies", "redis://me:secret@host"])
def test_a_storage_that_cannot_be_reached_is_said_without_its_password(workspace, storage):
    with pytest.raises(ValueError, match="cannot be reached|of no kind") as e: open_study("s", demo(workspace), storage, workspace)
    assert "secret" not in str(e.value)


def test_each_draw_has_a_seed_of_its_own_and_the_same_one_again():
    def first(drawn, seed=42):
        study = optuna.create_study(sampler=make_sampler(dict(name="random", seed=seed), drawn))
        return study.ask().suggest_float("x", 0, 1)
    assert len({first(n) for n in range(20)}) == 20 and first(3) == first(3) and first(3, 7) != first(3)


# -- pruning -----------------------------------------------------------------------------------------------------------

def test_a_reporter_prunes_what_the_median_prunes(tmp_path):
    "The rule by hand: the best value so far, against the median of the others at that epoch"
    file = tmp_path/"s.db"
    study = optuna.create_study(study_name="s", storage=open_storage(file), direction="maximize")
    curves = [[.1, .5, .9], [.3, .4, .5], [.2, .6, .7]]
    for curve in curves:
        trial = study.ask()
        for i,value in enumerate(curve): trial.report(value, i+1)
        study.tell(trial, curve[-1])
    new = [.05, .45, .95]
    tell = StudyReporter(file, "s", study.ask().number, "f1", dict(name="median", n_startup_trials=3, n_warmup_steps=2))
    said = [tell(i+1, value) for i,value in enumerate(new)]
    medians = [sorted(c[i] for c in curves)[1] for i in range(3)]
    by_hand = [i >= 1 and max(new[:i+1]) < medians[i] for i in range(3)]
    assert [bool(why) for why in said] == by_hand == [False, True, False]
    assert "pruned after epoch 2: f1 0.45" in said[1]
    assert study.trials[-1].intermediate_values == {1:.05, 2:.45, 3:.95}


class Loop:
    "What the callback asks of a Learner"
    def __init__(self, n_epoch=5): self.columns,self.cbs,self.n_epoch,self.epoch,self.training,self.report = {},[],n_epoch,0,False,None


def told_by(rows, answer=lambda epoch, value: None, better="max", column="max", monkeypatch=None):
    "What a TrialReport reports of rows, and how the fit ends"
    from types import SimpleNamespace
    said = []
    def report(epoch, value):
        said.append((epoch, value))
        return answer(epoch, value)
    cb = TrialReport(report, "f1", better)
    learn = SimpleNamespace(columns=dict(f1=SimpleNamespace(better=column)), cbs=[], recorder=SimpleNamespace(rows=[]), n_epoch=len(rows))
    cb.learn,cb.recorder,cb.n_epoch = learn,learn.recorder,len(rows)
    cb.before_fit()
    for i,row in enumerate(rows):
        learn.recorder.rows.append(dict(epoch=i+1, **row))
        cb.epoch = i
        try: cb.after_epoch()
        except TrainingStopped as e: return said, str(e)
    return said, None


@pytest.fixture(autouse=True)
def no_speaker():
    TrialReport.speaker = None
    yield
    TrialReport.speaker = None


def test_each_validated_epoch_is_reported_once():
    assert told_by([dict(f1=.1), {}, dict(f1=.3)]) == ([(1, .1), (3, .3)], None)


def test_a_verdict_stops_the_fit_but_not_a_fit_that_is_over():
    said,error = told_by([dict(f1=.1), dict(f1=.2), dict(f1=.3)], lambda epoch, value: "pruned: enough" if epoch == 2 else None)
    assert said == [(1, .1), (2, .2)] and "pruned: enough" in error and "(exit code 76)" in error
    TrialReport.speaker = None
    assert told_by([dict(f1=.1)], lambda *a: "pruned: enough") == ([(1, .1)], None)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_pruned_with_its_reason(value):
    said,error = told_by([dict(f1=value), dict(f1=1.)])
    assert said == [] and "f1 is no number" in error


def test_a_score_in_the_other_direction_is_an_error():
    with pytest.raises(ValueError, match="wants the min of 'f1', but of this column the max"): told_by([], better="min")


# -- carrying a study out ----------------------------------------------------------------------------------------------

def test_a_study_from_the_command_line_to_its_best_parameters(workspace, capfd):
    "Each trial is a run folder; best_params.json is what `hyperparams` applies, all of it"
    (workspace/"space.json").write_text(json.dumps(dict(space=SPACE, score="near", better="max")))
    command = ["search", "train_demo.ipynb", "--space", "space.json", "--trials", "3", "--study", "s", "-p", "epochs", "2"]
    assert main(command) == 0
    out = capfd.readouterr().out
    best = read_json(workspace/"out/search/s/best_params.json")
    assert "study s" in out and "-p epochs 2 -p hyperparams" in out and best["study_name"] == "s" and best["n_trials"] == 3
    assert {"best_value", "best_params", "n_trials", "study_name", "optimization_time"} <= best.keys()
    lines = (workspace/"out/search/s/trials.csv").read_text().splitlines()
    assert len(lines) == 4 and (workspace/"out/search/s/history.png").is_file()
    run = workspace/"out"/best["best_run"]
    asked = {k:v for k,v in read_json(run/"params.json").items() if k in best["best_params"]}
    assert asked == best["best_params"] and read_json(run/"status.json")["status"] == "finished"
    assert best["best_value"] == max(row["near"] for row in json.loads((run/"history.json").read_text()))
    assert main(command) == 0 and len(list((workspace/"out/train_demo").iterdir())) == 3 # enough have ended: nothing more is run
    assert main(["search", "train_demo.ipynb", "--space", "space.json", "--trials", "4", "--study", "s"]) == 2
    assert "exists with another plan (params.epochs: 2 -> None)" in capfd.readouterr().err


def test_a_trial_that_fails_is_recorded_and_does_not_count(workspace):
    study = open_study("s", demo(workspace, dict(x=[6., 2.]), params=dict(epochs=1)), root=workspace)
    study.enqueue_trial(dict(x=6.))
    study.enqueue_trial(dict(x=2.))
    lines = []
    found = search(study, 1, root=workspace, say=lines.append)
    rows = study_rows(study)
    assert [row["state"] for row in rows] == ["fail", "complete"] and "ValueError: x=6.0 is too far" in rows[0]["why"]
    assert found["best_params"] == dict(x=2.) and found["states"] == dict(complete=1, fail=1) and len(lines) == 2
    assert read_json(workspace/"out"/rows[0]["run"]/"status.json")["status"] == "failed"
    for _ in range(2): study.enqueue_trial(dict(x=6.))
    with pytest.raises(RuntimeError, match="2 trials in a row failed.*too far"): search(study, 5, root=workspace, max_failures=2)


def start(workspace, *args):
    return subprocess.Popen([sys.executable, "-m", "vitnb.experiment.cli", "search", "train_demo.ipynb", *args], cwd=workspace,
                            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(what, why, seconds=120):
    end = time.monotonic() + seconds
    while not (got := what()):
        assert time.monotonic() < end, why
        time.sleep(.05)
    return got


@pytest.fixture
def space_file(workspace):
    (workspace/"space.json").write_text(json.dumps(dict(space=SPACE, score="near", better="max", pruner=dict(name="none"))))
    return ["--space", "space.json", "--study", "s"]


def test_a_killed_search_goes_on_where_it_was(workspace, space_file):
    "SIGKILL amid the second of 3 trials: the next worker takes up its run at the epoch it had reached, and draws what would have been drawn"
    slow = [*space_file, "--trials", "3", "-p", "nap", "0.4"]
    worker = start(workspace, *slow)
    def second():
        runs = sorted((workspace/"out/train_demo").glob("*-s.0001"))
        return runs and (runs[0]/"history.json").is_file() and runs[0]
    run = wait_for(second, "no second trial")
    worker.kill()
    worker.wait()
    done = len(json.loads((run/"history.json").read_text()))
    worker = start(workspace, *slow)
    out,_ = worker.communicate(timeout=200)
    assert worker.returncode == 0, out
    study = open_study("s", root=workspace)
    rows = study_rows(study)
    assert [row["state"] for row in rows] == ["complete", "fail", "complete", "complete"]
    assert rows[1]["run"] == rows[2]["run"] and rows[1]["x"] == rows[2]["x"]
    began = [int(line) for line in (run/"began.txt").read_text().split()]
    assert began[0] == 0 and len(began) == 2 and began[1] >= done > 0
    space = check_space(SPACE)
    whole = [suggest(optuna.create_study(sampler=make_sampler(dict(name="tpe", seed=42), n)).ask(), space) for n in range(3)] # at random at first
    assert drawn(study) == whole


def test_two_workers_share_a_study(workspace, space_file):
    "Between them they carry out what was asked for, no setting twice and no number twice"
    workers = [start(workspace, *space_file, "--trials", "4", "-p", "epochs", "1") for _ in range(2)]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    rows = study_rows(open_study("s", root=workspace))
    assert [row["state"] for row in rows] == ["complete"]*4 and [row["number"] for row in rows] == list(range(4))
    assert len({row["x"] for row in rows}) == 4 and len({row["run"] for row in rows}) == 4
    assert all("trial" in output for output in outputs), "one of them found nothing to do"


def test_a_signal_ends_a_search_and_its_trial_is_queued_again(workspace, space_file):
    worker = start(workspace, *space_file, "--trials", "1", "-p", "nap", "60")
    wait_for(lambda: list((workspace/"out/train_demo").glob("*/began.txt")), "no trial")
    worker.send_signal(signal.SIGTERM)
    out,_ = worker.communicate(timeout=60)
    assert worker.returncode in (130, 143), out
    states = [row["state"] for row in study_rows(open_study("s", root=workspace))]
    assert states == ["fail", "waiting"]


def postgres_bin():
    "Where a PostgreSQL server's programs are, None where there are none"
    found = [Path(p).parent for p in [shutil.which("initdb"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))] if p]
    return found[-1] if found else None


@pytest.fixture
def postgres(tmp_path):
    "A server of our own, and the address of an empty database there"
    pytest.importorskip("psycopg")
    programs = postgres_bin()
    if programs is None: pytest.skip("no PostgreSQL server is installed")
    from vitnb.launch import free_port
    as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    if as_user and not shutil.which("setpriv"): pytest.skip("PostgreSQL does not run as root, and setpriv is missing")
    import tempfile
    home = Path(tempfile.mkdtemp(prefix="vitnb-pg-"))
    port = free_port()
    def call(*command): subprocess.run([*as_user, *map(str, command)], check=True, capture_output=True, timeout=120, cwd=home)
    try:
        if as_user: shutil.chown(home, "nobody", "nogroup")
        call(programs/"initdb", "-D", home/"data", "-A", "trust", "-U", "me", "--no-sync")
        call(programs/"pg_ctl", "-D", home/"data", "-w", "-l", home/"log", "-o", f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -F", "start")
        call(programs/"createdb", "-h", "127.0.0.1", "-p", port, "-U", "me", "studies")
        yield f"postgresql://me:secret@127.0.0.1:{port}/studies"
    finally:
        if (home/"data"/"postmaster.pid").is_file(): call(programs/"pg_ctl", "-D", home/"data", "-m", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)


def test_a_study_on_a_postgresql_server(workspace, postgres, space_file):
    "Two workers, one server; the password stands in no file"
    workers = [start(workspace, *space_file, "--trials", "4", "--storage", postgres, "-p", "epochs", "1") for _ in range(2)]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    study = open_study("s", storage=postgres, root=workspace)
    assert [row["state"] for row in study_rows(study)] == ["complete"]*4 and best_params(study)["best_value"] is not None
    assert not [p for p in (workspace/"out").rglob("*") if p.is_file() and b"secret" in p.read_bytes()]
    assert not any("secret" in output for output in outputs)


# -- sweeps of Weights & Biases, without it ----------------------------------------------------------------------------

class FakeRun:
    "A run of a sweep, as far as it is used"
    def __init__(self, config): self.config,self.id,self.logged,self.summary,self.failed = config,f"r{id(config)%997}",[],{},None
    def log(self, values): self.logged.append(values)
    def __enter__(self): return self
    def __exit__(self, kind, *_): self.failed = kind is not None


class FakeServer:
    "What wandb.sweep, agent and init do: keep a sweep by its id, draw settings of it"
    def __init__(self): self.sweeps,self.runs,self.current = {},[],None

    def sweep(self, config, project=None, entity=None):
        self.sweeps["abc123"] = config
        return "abc123"

    def agent(self, sweep, function, entity=None, project=None, count=None):
        self.asked = entity, project
        for i in range(count):
            drawn = {k:p["values"][i % len(p["values"])] if "values" in p else p.get("value", p.get("min")) for k,p in self.sweeps[sweep]["parameters"].items()}
            self.current = FakeRun(drawn)
            self.runs.append(self.current)
            function()

    def init(self): return self.current


@pytest.fixture
def server(monkeypatch):
    fake = FakeServer()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def test_a_sweep_is_created_and_joined_by_its_id(workspace, server, capfd):
    "The plan travels in it; what does not act beside the rest is left out; each trial is a run folder"
    (workspace/"space.json").write_text(json.dumps(SPACE))
    assert main(["sweep", "train_demo.ipynb", "--space", "space.json", "--score", "near", "--better", "max", "--entity", "me", "-p", "epochs", "1"]) == 0
    assert "vitnb sweep-agent me/train_demo/abc123" in capfd.readouterr().out
    config = server.sweeps["abc123"]
    assert config["method"] == "bayes" and config["metric"] == dict(name="near", goal="maximize")
    assert config["early_terminate"] == dict(type="hyperband", min_iter=5, eta=3)
    assert config["parameters"]["x"] == dict(distribution="uniform", min=0., max=4.) and config["parameters"]["kind"] == dict(values=["a", "b"])
    assert main(["sweep-agent", "me/train_demo/abc123", "--count", "2"]) == 0
    assert server.asked == ("me", "train_demo") and [run.failed for run in server.runs] == [False, False]
    asked = [read_json(workspace/"out"/run.summary["run"]/"params.json") for run in server.runs]
    assert [a["kind"] for a in asked] == ["a", "b"] and [run.summary["near"] for run in server.runs] == [-2., -2.]


@pytest.mark.parametrize("entry,wanted", [
    (dict(low=1e-5, high=.1, log=True), dict(distribution="log_uniform_values", min=1e-5, max=.1)),
    (dict(low=5, high=20), dict(distribution="int_uniform", min=5, max=20)), ([16, 32], dict(values=[16, 32])),
    (dict(low=.1, high=.9, step=.2), dict(distribution="q_uniform", q=.2, min=.1, max=.9))])
def test_each_kind_of_entry_in_wandbs_words(workspace, entry, wanted):
    from vitnb.experiment.study import SearchPlan
    from vitnb.experiment.sweep import sweep_config
    assert sweep_config(SearchPlan("n.ipynb", check_space(dict(p=entry)), "s", "min"))["parameters"]["p"] == wanted


def test_whole_numbers_that_come_back_as_real_ones_are_whole():
    found = active_params(check_space(dict(n=dict(low=5, high=20))), dict(n=7.))
    assert found == dict(n=7) and isinstance(found["n"], int)


def test_a_server_that_cannot_be_reached_names_the_way_without_it(workspace, server, capfd):
    def refuse(*_, **__): raise ConnectionError("no route to host")
    server.sweep = refuse
    (workspace/"space.json").write_text(json.dumps(SPACE))
    assert main(["sweep", "train_demo.ipynb", "--space", "space.json", "--score", "near", "--better", "max"]) == 2
    err = capfd.readouterr().err
    assert "no route to host" in err and "WANDB_MODE=offline" in err and "vitnb search" in err


def test_offline_a_sweep_is_a_study_of_this_machine(workspace, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (workspace/"space.json").write_text(json.dumps(SPACE))
    assert main(["sweep", "train_demo.ipynb", "--space", "space.json", "--score", "near", "--better", "max", "--sweep-name", "mine", "-p", "epochs", "1"]) == 0
    assert "W&B is offline" in capfd.readouterr().out
    assert main(["sweep-agent", "mine", "--count", "1"]) == 0
    assert [row["state"] for row in study_rows(open_study("mine", root=workspace))] == ["complete"]
    assert main(["sweep-agent", "mine"]) == 2 and "--count" in capfd.readouterr().err
    assert main(["sweep-agent", "other", "--count", "1"]) == 2 and "no study 'other'" in capfd.readouterr().err


# -- a real training ---------------------------------------------------------------------------------------------------

TRAINING = ["lr     = 1e-3  # peak\nepochs = 3     # passes\ntag    = ''    # added to the run folder",
"""from vitnb.experiment.run import Run
run = Run("train_demo", globals(), tag)""",
"""from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.learner.core import run_callbacks, vit_learner
dls = image_loaders(load_set("digits", limit=6), bs=16, device="cpu", seed=1)
learn = vit_learner(dls, "swin_micro", lr=lr, schedule="constant", device="cpu", seed=1)
learn.fit(epochs, cbs=run_callbacks(run.dir, tracker="none"), resume="auto" if run.resumed else "never")
run.finish(epochs=len(learn.recorder.rows))"""]


def test_a_training_that_is_behind_is_pruned_from_inside(workspace):
    "Of two, the one that does not learn ends before its last epoch, in order: saved, and marked as stopped"
    nb = json.loads((workspace/"train_demo.ipynb").read_text())
    cell = nb["cells"][0]
    nb["cells"] = [dict(cell, id=f"c{i}", source=s, metadata=dict(tags=["parameters"] if i == 0 else [])) for i,s in enumerate(TRAINING)]
    (workspace/"train_demo.ipynb").write_text(json.dumps(nb))
    plan = make_plan(workspace/"train_demo.ipynb", dict(lr=dict(low=1e-9, high=1e-2, log=True)), "train_loss", "min",
                     pruner=dict(name="median", n_startup_trials=1, n_warmup_steps=1))
    study = open_study("s", plan, root=workspace)
    for lr in (3e-3, 1e-9): study.enqueue_trial(dict(lr=lr))
    found = search(study, 2, root=workspace, say=lambda line: None)
    good,bad = study_rows(study)
    assert (good["state"], good["epochs"], bad["state"]) == ("complete", 3, "pruned") and bad["epochs"] < 3
    assert bad["why"].startswith(f"pruned after epoch {bad['epochs']}: train_loss") and found["best_params"] == dict(lr=3e-3)
    run = workspace/"out"/bad["run"]
    rows = json.loads((run/"history.json").read_text())
    assert len(rows) == bad["epochs"] and rows[-1]["train_loss"] == bad["value"] and read_json(run/"status.json")["status"] == "stopped"
    assert (run/"checkpoints/last_model.pth").is_file() and read_json(run/"params.json")["lr"] == 1e-9
    rows = json.loads((workspace/"out"/good["run"]/"history.json").read_text())
    assert [row["train_loss"] for row in rows] == list(study.trials[0].intermediate_values.values()) and good["value"] == min(row["train_loss"] for row in rows)
