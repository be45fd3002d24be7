"A file is what was written, or that is noticed"
import safetensors.torch
import torch

from vitnb.written import is_as_written, note_written, read_line, seal_tensors, sealed_line, tensors_fault


def test_every_flipped_bit_of_a_line_is_noticed_or_harmless():
    facts = dict(t=1.5, event="epoch", accuracy=.97, zones=[1, None], name="ö")
    raw = sealed_line(facts).encode()
    assert read_line(raw) == facts
    for place in range(len(raw)):
        for bit in range(8):
            harmed = raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place+1:]
            try: found = read_line(harmed)
            except ValueError: continue
            assert {name:found.get(name) for name in facts} == facts, harmed


def test_only_the_versions_that_were_written_are_known(tmp_path):
    note_written(tmp_path/"a.json", b"1")
    assert not (tmp_path/".sums").exists() and is_as_written(tmp_path/"a.json", b"2"), "no run, no list"
    (tmp_path/".lock").touch()
    for raw in (b"1", b"2", b"1"): note_written(tmp_path/"a.json", raw)
    assert [is_as_written(tmp_path/"a.json", raw) for raw in (b"1", b"2", b"3")] == [True, True, False]
    assert is_as_written(tmp_path/"b.json", b"3") and len((tmp_path/".sums").read_bytes().splitlines()) == 2


def test_every_flipped_bit_of_an_export_is_noticed_or_harmless(tmp_path):
    path = tmp_path/"m.safetensors"
    weights = dict(w=torch.arange(4.), b=torch.ones(1))
    raw = seal_tensors(safetensors.torch.save(weights, dict(vitnb='{"mean": 0.5}')))
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place+1:])
        if tensors_fault(path): continue
        try: found = safetensors.torch.load_file(path)
        except Exception: continue # safetensors itself has noticed
        assert all(torch.equal(found[name], weights[name]) for name in weights), place
    path.write_bytes(safetensors.torch.save(weights))
    assert tensors_fault(path) == "", "other programs write none"
