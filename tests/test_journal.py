"The journal of a running notebook: each byte once, the view within a budget, and a disk that fills up"
import errno
import json
import os
import threading
import time
from pathlib import Path

import nbformat
import pytest
from test_salvage import notebook, run, whole

from vitnb.experiment import journal as room
from vitnb.experiment.journal import Journal
from vitnb.experiment.salvage import complete


def outputs(path): return [["".join(o.get("text", "")) or o["data"]["text/plain"] for o in c.get("outputs", [])] for c in whole(path).cells]


def test_the_journal_becomes_the_notebook(tmp_path):
    output,nb = tmp_path/"a.ipynb",notebook(3)
    journal = Journal(output, nb)
    assert outputs(output) == [[]]*4, "from the start there is a whole notebook"
    run(journal, nb, 3)
    journal.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["a.ipynb"]
    assert outputs(output)[2] == ["line 2\nand more\n", "a warning\n", "shown 2"] and outputs(output)[3] == []


def test_each_byte_is_written_once(tmp_path, monkeypatch):
    "Ten outputs of a megabyte: what all writes together take is the notebook, and a tenth at most"
    written = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, raw: written.append(len(raw)) or real(descriptor, raw))
    quick = room.quick_write
    monkeypatch.setattr(room, "quick_write", lambda path, raw: written.append(len(raw)) or quick(path, raw))
    output,nb = tmp_path/"a.ipynb",notebook(20)
    journal = Journal(output, nb)
    run(journal, nb, 1)
    for cell in nb["cells"][1:]:
        journal.begin(cell)
        text = f"{len(written)}"*300_000
        journal.add_text("stdout", text)
        cell["outputs"] = [dict(output_type="stream", name="stdout", text=[text])]
        journal.end()
        journal.next_view = 0
        journal.refresh()
        assert len(whole(output).cells) == 21
    journal.finish()
    size = output.stat().st_size
    assert size <= sum(written) <= 1.1*size + room._FREE, (size, sum(written))


def with_much_output(tmp_path, monkeypatch, n):
    "A notebook of which a cell has run that printed more than its view may hold"
    monkeypatch.setattr(room, "_FREE", 10_000)
    output,nb = tmp_path/"a.ipynb",notebook(n)
    journal = Journal(output, nb)
    run(journal, nb, 1)
    nb["cells"][1]["outputs"] = [dict(output_type="stream", name="stdout", text=["x"*100_000])]
    journal.begin(nb["cells"][1])
    journal.add(nb["cells"][1]["outputs"][0])
    journal.end()
    return output, nb, journal


def test_a_view_of_a_large_notebook_shows_what_runs(tmp_path, monkeypatch):
    output,nb,journal = with_much_output(tmp_path, monkeypatch, 3)
    journal.begin(nb["cells"][2])
    journal.add_text("stdout", "epoch 1\n")
    nb["cells"][2]["outputs"] = [dict(output_type="stream", name="stdout", text=["epoch 1\n"])]
    journal.pending = lambda: dict(stderr="50%")
    journal.refresh()
    seen = outputs(output)
    assert "vitnb recover" in seen[1][0] and seen[2] == ["epoch 1\n", "50%"] and output.stat().st_size < 10_000
    journal.end()
    journal.finish()
    assert outputs(output)[1] == ["x"*100_000]


@pytest.mark.parametrize("when", ["as it is made", "as it is written", "afterwards"])
def test_a_late_view_does_not_replace_the_notebook(tmp_path, monkeypatch, when):
    "The run ends while its view is under way in the other thread: the notebook is whole in the end, whichever comes first"
    output,nb,journal = with_much_output(tmp_path, monkeypatch, 1)
    begun,quick,view = threading.Event(),room.quick_write,Journal.view
    def slowly(real, at):
        def call(*args):
            if when == at:
                begun.set()
                time.sleep(.3)
            return real(*args)
        return call
    monkeypatch.setattr(Journal, "view", slowly(view, "as it is made"))
    monkeypatch.setattr(room, "quick_write", slowly(quick, "as it is written"))
    thread = threading.Thread(target=journal.refresh)
    if when == "afterwards": begun.set()
    else: thread.start()
    assert begun.wait(120)
    with journal.lock: journal.finish() # as `scribe.finish` does
    if when == "afterwards": thread.start()
    thread.join()
    assert outputs(output)[1] == ["x"*100_000]


def test_a_display_that_changes_in_place_leaves_its_last_frame(tmp_path):
    output,nb = tmp_path/"a.ipynb",notebook(2)
    journal,cell = Journal(output, nb),nb["cells"][1]
    run(journal, nb, 1)
    journal.begin(cell)
    for frame in range(5):
        cell["outputs"] = [dict(output_type="display_data", data={"text/plain":f"frame {frame}"}, metadata={})]
        journal.add(cell["outputs"][0]) if frame == 0 else journal.stale()
        journal.next_view = 0
        journal.refresh()
        assert outputs(output)[1] == [f"frame {frame}"]
    raw = journal.path.read_bytes()
    assert b"frame 4" in raw and b"frame 3" not in raw, "what a crash would leave is up to date as well"
    journal.end()
    journal.finish()
    assert outputs(output)[1] == ["frame 4"]


@pytest.mark.parametrize("killed_at", [None, 1, 2])
def test_a_display_of_an_earlier_cell(tmp_path, monkeypatch, killed_at):
    "Killed while a file takes another's name: no older lines replace what was changed, and what is left says so"
    output,nb = tmp_path/"a.ipynb",notebook(2)
    journal = Journal(output, nb)
    run(journal, nb, 3)
    nb["cells"][1]["outputs"][-1]["data"]["text/plain"] = "changed"
    journal.is_amended = True
    moves,replace,unlink = [],os.replace,Path.unlink
    def dying(call):
        def move(*args, **kw):
            moves.append(args)
            if killed_at and len(moves) >= killed_at: raise SystemError("killed") # and nothing is moved any more
            return call(*args, **kw)
        return move
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(replace))
        patch.setattr(Path, "unlink", dying(unlink))
        try: journal.finish()
        except SystemError: pass
    assert complete(output) == (output if killed_at else None)
    assert outputs(output)[1][-1] == ("shown 1" if killed_at == 1 else "changed") and not journal.path.exists()
    assert ("exception" in whole(output).metadata.get("papermill", {})) == (killed_at == 1)


@pytest.mark.parametrize("gets_room", [True, False])
def test_a_disk_that_fills_up(tmp_path, monkeypatch, capfd, gets_room):
    "The run goes on and says so once; with room at the end nothing is missing, without it the journal keeps what was written"
    output,nb = tmp_path/"a.ipynb",notebook(3)
    journal = Journal(output, nb)
    run(journal, nb, 2)
    real,full = os.write,True
    def write(descriptor, raw):
        if descriptor != journal.descriptor or not full: return real(descriptor, raw)
        real(descriptor, bytes(raw)[:5]) # a part finds room
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "write", write)
    for number,cell in enumerate(nb["cells"][2:], 2):
        journal.begin(cell)
        journal.add_text("stdout", f"line {number}\n")
        cell["outputs"] = [dict(output_type="stream", name="stdout", text=[f"line {number}\n"])]
        journal.end()
    assert capfd.readouterr().err.count("No space left") == 1
    if gets_room:
        journal.finish()
        assert outputs(output)[2:] == [["line 2\n"], ["line 3\n"]] and not journal.path.exists()
    else:
        def no_room(path): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        monkeypatch.setattr(room, "atomic_write", no_room)
        with pytest.raises(OSError, match="No space left"): journal.finish()
        room.complete(output) # `vitnb recover`, when there is room
        assert outputs(output)[1][0].startswith("line 1") and outputs(output)[2:] == [[], []]


def test_what_a_killed_process_left_is_kept_when_the_notebook_is_run_again(tmp_path):
    output,nb = tmp_path/"a.ipynb",notebook(2)
    first = Journal(output, nb)
    run(first, nb, 2)
    os.close(first.descriptor)
    second = Journal(output, notebook(2))
    second.finish()
    assert outputs(tmp_path/"a.killed.ipynb")[1][0].startswith("line 1") and outputs(output)[1] == []


def test_half_a_character_is_written(tmp_path):
    output,nb = tmp_path/"a.ipynb",notebook(1)
    journal = Journal(output, nb)
    run(journal, nb, 1)
    journal.begin(nb["cells"][1])
    journal.add_text("stdout", "\ud800 é\n")
    journal.end()
    journal.finish()
    assert json.loads(output.read_bytes())["cells"][1]["outputs"][0]["text"] == ["\ud800 é\n"]


def test_a_text_weighs_the_same_in_parts_and_joined():
    parts = dict(output_type="stream", name="stdout", text=["ab\n", "c"])
    assert room._weight(parts) == room._weight({**parts, "text":"ab\nc"}) == 4
