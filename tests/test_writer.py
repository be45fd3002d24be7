"A checkpoint is written whole, by one thread after the other, and what it says is not what training has become since"
import os
import signal

import pytest
import torch

from vitnb.callback.writer import BackgroundWriter, save_checkpoint, snapshot


def test_the_copy_is_taken_before_training_goes_on(tmp_path):
    weights = torch.zeros(4)
    writer = BackgroundWriter()
    for step in range(5):
        weights += 1
        writer.save({tmp_path/f"{step}.pth":dict(weights=weights)})
    writer.join()
    assert [torch.load(tmp_path/f"{step}.pth", weights_only=True)["weights"][0].item() for step in range(5)] == [1, 2, 3, 4, 5]


def test_what_is_outdated_goes_after_the_new_is_there(tmp_path):
    (tmp_path/"old.pth").write_bytes(b"old")
    seen = []
    def outdated():
        seen.append((tmp_path/"new.pth").is_file())
        return [tmp_path/"old.pth"]
    writer = BackgroundWriter()
    writer.save({tmp_path/"new.pth":dict(a=1)}, outdated)
    writer.join()
    assert seen == [True] and not (tmp_path/"old.pth").exists()


def test_killed_in_a_write_the_earlier_file_is_whole(tmp_path):
    path = save_checkpoint(dict(epoch=1), tmp_path/"last_model.pth")
    pid = os.fork()
    if pid == 0:
        def half(state, file):
            with open(file, "wb") as out: out.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save = half
        save_checkpoint(dict(epoch=2), path)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert torch.load(path, weights_only=True) == dict(epoch=1)


@pytest.mark.parametrize("state", [[1, (2, "a")], dict(a=None, b=dict(c=1.5))], ids=str)
def test_plain_values_stay_as_they_are(state): assert snapshot(state) == state
