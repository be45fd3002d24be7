"The same process for every test, alone or in the suite: one thread, seeded generators, and nothing that another left"
import os
import signal

import matplotlib
import pytest
import torch
from process_state import left, reseed, shared
from stored_runs import make_runs

from vitnb.exactness import Warm
from vitnb.losses.base import Loss, losses

BEFORE = pytest.StashKey[dict]()


def pytest_configure(config):
    torch.set_num_threads(1)
    matplotlib.use("agg")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session):
    "Before the first file is imported"
    session.stash[BEFORE] = shared()


def pytest_collection_finish(session):
    "What a file registers when it is imported decides what the others find: which, depends on their order"
    if found := left(session.stash[BEFORE], shared()):
        raise pytest.UsageError(f"importing the test files changes what they share: {', '.join(found)}; do it in a fixture")


@pytest.fixture(scope="session", autouse=True)
def no_settings_and_no_files_from_before(tmp_path_factory):
    "Variables of the user's shell count for nothing; measurements, caches and runs of an earlier suite are not found"
    own = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as m:
        for k in [k for k in os.environ if k.startswith("VITNB_")]: m.delenv(k)
        m.setenv("VITNB_CACHE_PATH", str(own/"cache"))
        m.setenv("VITNB_OUTPUTS_PATH", str(own/"outputs"))
        yield


@pytest.fixture(autouse=True)
def the_process_stays_as_it_is():
    "Set up before all other fixtures of a test and torn down after them"
    reseed()
    before = shared()
    yield
    if found := left(before, shared()): pytest.fail(f"the test leaves changed what others share: {', '.join(found)}")


@pytest.fixture
def heard():
    "SIGHUP is not ignored, as it is below `nohup`; processes that are started inherit it"
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def warm():
    "A process that has imported everything, for proofs of exact resume"
    with Warm() as process: yield process


@pytest.fixture(scope="session")
def empty_db(tmp_path_factory):
    "MLflow takes seconds to make its tables: they are made once"
    mlflow = pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("db")/"mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    "A run of every kind of task: they are trained once, and not changed"
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def clock(monkeypatch):
    "Time passes only where a test says so"
    now = [1000.]
    monkeypatch.setattr("time.time", lambda: now[0])
    return now


@pytest.fixture
def new_loss():
    "A loss that somebody has added, in its room alone"
    @losses.register("steep")
    class SteepLoss(Loss):
        def __init__(self, slope=2., *others, **more): super().__init__()
    yield "steep"
    del losses["steep"]
