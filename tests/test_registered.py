"What a room registers is gathered with its options"
from vitnb.learner.registered import gather_names


def test_a_loss_is_gathered_with_its_options(new_loss):
    gathered = gather_names()
    assert new_loss in gathered["names"]["loss"] and gathered["options"]["loss"][new_loss] == ["slope"]


def test_each_list_is_in_order_and_without_twins():
    for names in gather_names()["names"].values(): assert names == sorted(set(names))
