"Images with what their targets say"
import pytest
from data_helpers import film_set, own_folders
from matplotlib import pyplot as plt

from vitnb.data.sets import load_set

@pytest.mark.parametrize("make", [film_set, lambda: load_set("digits", limit=20)])
def test_every_kind_of_target_is_shown(make, monkeypatch):
    dls = make().loaders(bs=6, device="cpu", views=2)
    for dl in (dls.train, dls.valid): dl.show_batch(max_n=4)
    plt.close("all")
