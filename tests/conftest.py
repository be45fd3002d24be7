"The same process for every test, alone or in the suite: one thread, seeded generators, and nothing that another left"
import matplotlib
import pytest
import torch
from process_state import left, reseed, shared


def pytest_configure(config):
    torch.set_num_threads(1)
    matplotlib.use("agg")


@pytest.fixture(autouse=True)
def the_process_stays_as_it_is():
    "Set up before all other fixtures of a test and torn down after them"
    reseed()
    before = shared()
    yield
    if found := left(before, shared()): pytest.fail(f"the test leaves changed what others share: {', '.join(found)}")
