"What an earlier fit has written is kept when another begins in its folder"
import os

import pytest

from vitnb.callback.earlier import set_aside


@pytest.mark.parametrize("links", [True, False])
def test_files_are_kept_and_stay_in_their_place(tmp_path, monkeypatch, links):
    def no(*args): raise OSError("no links here")
    if not links: monkeypatch.setattr(os, "link", no)
    (tmp_path/"a.pth").write_bytes(b"first")
    (tmp_path/"b.txt").write_bytes(b"another")
    aside = set_aside(tmp_path, ["*.pth"])
    assert [p.name for p in aside.iterdir()] == ["a.pth"] and (tmp_path/"a.pth").read_bytes() == b"first"
    (tmp_path/"new").write_bytes(b"second")
    os.replace(tmp_path/"new", tmp_path/"a.pth")
    assert (aside/"a.pth").read_bytes() == b"first"
    assert set_aside(tmp_path, ["*.pth"]).name == "earlier-2"


def test_an_empty_folder_gets_none(tmp_path):
    assert set_aside(tmp_path, ["*.pth"]) is None and not list(tmp_path.iterdir())
