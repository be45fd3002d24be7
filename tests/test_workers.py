"Worker processes change nothing, and end with their loader"
import gc
import os
import random
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from data_helpers import digits, equal, film_set, own_folders, paint, passes, same

from vitnb.data import workers as workers_module
from vitnb.data.augment import augments
from vitnb.data.geometry import Resize
from vitnb.data.loader import image_loaders
from vitnb.data.sets import load_set
from vitnb.data.table import ImageSet, Split
from vitnb.data.transform import Transform
from vitnb.data.workers import measure_workers, workers_that_feed
from vitnb.kernel import STOPPING

@pytest.mark.parametrize("augment", ["shift", "advanced"])
def test_workers_change_nothing(digits, augment):
    one,two = (image_loaders(digits, bs=100, augment=augment, workers=w, device="cpu").train for w in (0, 2))
    assert same(passes(one, 2), passes(two, 2)) and one.epoch == two.epoch == 2

def test_a_pass_inside_a_pass(digits):
    dl = image_loaders(digits, bs=300, augment="shift", workers=2, device="cpu").train
    outer,inner = [],[]
    dl.set_epoch(3)
    for b in dl:
        outer.append(b)
        if not inner:
            dl.set_epoch(0)
            inner = passes(dl)
            dl.set_epoch(3)
    fresh = dl.new()
    fresh.set_epoch(0); assert same(inner, passes(fresh))
    fresh.set_epoch(3); assert same(outer, passes(fresh))

@pytest.mark.timeout(120) # each wait would last for days
def test_workers_end_with_their_loader(digits, monkeypatch):
    "torch alone waits for each worker in vain when its loader is collected inside a reference cycle"
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 1e6) # in place of five seconds
    dl = image_loaders(digits, bs=300, augment="shift", workers=2, device="cpu").train
    passes(dl)
    pids = [w.pid for w in dl._passes.loader._iterator._workers]
    del dl
    gc.collect()
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError): os.kill(pid, 0)

@pytest.mark.timeout(120)
def test_workers_outlast_the_signal_that_all_of_a_job_get(digits):
    "What trains needs its batches to the end of the one in hand; it ends the workers itself"
    dl = image_loaders(digits, bs=100, augment="shift", workers=2, device="cpu").train
    got = []
    for b in dl:
        got.append(b)
        if len(got) > 1: continue
        pids = [worker.pid for worker in dl._passes.loader._iterator._workers]
        tell = f"import os\nfor pid in {pids}:\n    for number in {list(map(int, STOPPING))}: os.kill(pid, number)"
        assert subprocess.run([sys.executable, "-c", tell]).returncode == 0 # somebody else than what started them
    assert same(got, passes(image_loaders(digits, bs=100, augment="shift", device="cpu").train))


class Careless(Transform):
    "What nobody should write: numbers from the generators of the process"
    def batch(self, x, draws):
        drawn = [np.random.randint(1, 10**6), random.randrange(1, 10**6), int(torch.randint(1, 10**6, ()))]
        return torch.tensor(drawn, dtype=torch.float32).view(1, 3, 1, 1).expand(len(x), 3, *x.shape[2:]).clone()

def drawn(seed, epochs, workers=4):
    s = ImageSet("plain", list("ab"), dict(train=Split(np.zeros((16, 4, 4, 3), np.uint8), [0, 1]*8), valid=Split(np.zeros((2, 4, 4, 3), np.uint8), [0, 1])))
    dl = image_loaders(s, bs=1, augment="careless", stats=([0.]*3, [1/255]*3), workers=workers, seed=seed, device="cpu").train
    return [sorted(tuple(b[0][0,:,0,0].round().long().tolist()) for b in passes(dl)) for _ in range(epochs)]

def test_code_that_draws_by_itself_draws_other_numbers_in_each_batch_and_epoch_and_the_same_ones_again(monkeypatch):
    "A11: 4 workers, 16 items, of NumPy, Python and torch; in a new run of the seed the same, with another seed others"
    monkeypatch.setitem(augments, "careless", lambda size: [Resize(size), Careless()])
    one,two = drawn(0, 2)
    for k in range(3): assert len({o[k] for o in one + two}) == 32
    assert drawn(0, 2) == [one, two] and drawn(0, 1, workers=2) == [one], "nor does it matter how many there are"
    assert not set(drawn(1, 1)[0]) & set(one)

@pytest.mark.parametrize("views", [1, 3])
def test_workers_change_no_field(views):
    one,two = (film_set().loaders(bs=6, augment="crop_flip", device="cpu", seed=1, workers=w, views=views).train for w in (0, 2))
    assert all(equal(a.fields, b.fields) for _ in range(2) for a,b in zip(passes(one), passes(two)))

@pytest.mark.parametrize("cache", [True, False])
def test_workers_change_nothing_from_files(tmp_path, cache):
    s = load_set(paint(tmp_path/"noise", ((12,12), (9,20))))
    one,two = (image_loaders(s, img_size=10, bs=8, augment="imagenet", cache=cache, workers=w, device="cpu").train for w in (0, 2))
    assert same(passes(one), passes(two))


@pytest.mark.parametrize("seconds,cores,free,expected", [
    (.0019, 16, None, 0), (.0021, 16, None, 1), (.02, 16, None, 4), (.02, 3, None, 2), (.02, 1, None, 0), (1., 16, None, 15),
    (.02, 16, 8*1e6*6, 2), # two batches ahead for each worker, the one in use and the next: six of a megabyte
    (.02, 16, 8*1e6*3, 0)])
def test_as_many_workers_as_a_device_needs(seconds, cores, free, expected):
    assert workers_that_feed(seconds, 10**6, cores, free) == expected

class Slow:
    "Makes a batch in so many seconds of a clock of its own"
    def __init__(self, seconds): self.seconds,self.made = seconds,[]
    def perf_counter(self): return self.seconds*len(self.made)
    def __getitem__(self, key): self.made.append(key)
    def room(self, n): return n

def counted(monkeypatch, work, cores):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(workers_module, "time", work)
    return measure_workers(work, 5, 8)

def test_workers_are_counted_by_the_time_that_a_second_batch_takes(monkeypatch):
    slow,fast = Slow(.022),Slow(.001)
    assert [counted(monkeypatch, work, 64) for work in (slow, fast)] == [5, 0] and slow.made == [5, 5]

def test_counting_workers_leaves_the_generators_alone(monkeypatch):
    class Draws(Slow):
        def __getitem__(self, key):
            super().__getitem__(key)
            np.random.rand(), random.random(), torch.rand(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert counted(monkeypatch, Draws(.02), 64) == 4
    assert torch.equal(before[0], torch.get_rng_state()) and (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]

def test_ranks_share_the_cores(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert counted(monkeypatch, Slow(.03), 8) == 1

def test_on_a_cpu_nobody_is_started(digits, monkeypatch):
    monkeypatch.setenv("VITNB_WORKERS", "auto")
    dl = image_loaders(digits, bs=300, device="cpu").train
    assert len(list(dl)) and not dl.has_workers and dl.new().workers == "auto"

@pytest.mark.parametrize("workers", [-1, 1.5, True, "two"])
def test_a_wrong_number_of_workers_is_refused(digits, workers):
    with pytest.raises(ValueError, match="must be 'auto' or a whole number from 0"): image_loaders(digits, workers=workers)

FEEDS = """
import time
import torch
from vitnb.data.workers import WorkerPasses
class Work:
    def room(self, n): return 1000
    def batch_seed(self, key): return 0
    def __getitem__(self, key): return dict(image=torch.zeros(3))
if __name__ == "__main__":
    passes = WorkerPasses(Work(), 1, 2, False)
    passes.keys[:] = range(4)
    for batch in passes.loader: pass
    print("fed", flush=True)
    time.sleep(600)
"""

@pytest.mark.timeout(120)
def test_workers_end_when_their_process_is_killed(tmp_path):
    "SIGKILL, and they are between two passes: they look for their parent every five seconds"
    (tmp_path/"feeds.py").write_text(FEEDS)
    feeds = subprocess.Popen([sys.executable, str(tmp_path/"feeds.py")], stdout=subprocess.PIPE, text=True)
    assert feeds.stdout.readline() == "fed\n"
    workers = psutil.Process(feeds.pid).children(recursive=True)
    feeds.kill()
    feeds.wait()
    feeds.stdout.close()
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=30)[1]
