"Downloads from a small server on this machine, and archives that mean harm"
import hashlib
import io
import pickle
import socket
import stat
import tarfile
import tempfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings as hyp, strategies as st
from PIL import Image
from process_state import Refusing

import vitnb.data.download as transfer
import vitnb.data.sets as room
from vitnb.data.download import download, unpack
from vitnb.data.sets import load_set

BLOB = np.random.default_rng(1).bytes(300_001)
PIECE = 1 << 14 # a break loses at most the piece it falls in
MD5,SHA = hashlib.md5(BLOB).hexdigest(),hashlib.sha256(BLOB).hexdigest()

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def do_GET(self):
        s = self.server
        want,cond = self.headers.get("Range"),self.headers.get("If-Range")
        s.asked.append((want, cond))
        if s.status: self.send_response(s.status); self.send_header("Content-Length", "0"); self.end_headers(); return
        blob,start = s.blob,0
        if want and s.ranges and (cond is None or cond in (s.etag, s.modified)): start = int(want[6:-1])
        if start >= len(blob):
            self.send_response(416); self.send_header("Content-Range", f"bytes */{len(blob)}"); self.send_header("Content-Length", "0"); self.end_headers(); return
        self.send_response(206 if start else 200)
        if start: self.send_header("Content-Range", f"bytes {start+s.shift}-{len(blob)-1}/{len(blob)}")
        if s.length: self.send_header("Content-Length", str(len(blob)-start))
        else: self.send_header("Connection", "close")
        if s.etag: self.send_header("ETag", s.etag)
        if s.modified: self.send_header("Last-Modified", s.modified)
        self.end_headers()
        cut = s.breaks.pop(0) if s.breaks else None
        self.wfile.write(blob[start:] if cut is None else blob[start:start+cut])
        self.close_connection = True

@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path):
    monkeypatch.setenv("VITNB_DATA_PATH", str(tmp_path/"data"))
    monkeypatch.setenv("VITNB_CACHE_PATH", str(tmp_path/"cache"))

@pytest.fixture
def server():
    s = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    s.__dict__.update(blob=BLOB, asked=[], breaks=[], ranges=True, etag='"v1"', modified="", length=True, status=0, shift=0, url=f"http://127.0.0.1:{s.server_port}/set.zip")
    threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    yield s
    s.shutdown(); s.server_close()

def visible(d): return sorted(o.name for o in d.iterdir() if not o.name.startswith("."))

# ---------- a file that arrives

def test_arrives_checked_and_only_once(server, tmp_path):
    f = tmp_path/"deep"/"er"/"set.zip"
    for _ in range(2): assert download(server.url, f, md5=MD5, sha256=SHA.upper(), wait=0) == f
    assert f.read_bytes() == BLOB and len(server.asked) == 1 and visible(f.parent) == ["set.zip"]

@pytest.mark.parametrize("mark", [dict(etag='"v1"'), dict(etag="", modified="Mon, 01 Jan 2024 00:00:00 GMT"), dict(etag='W/"v1"', modified="Mon, 01 Jan 2024 00:00:00 GMT")])
def test_resumes_where_it_broke(server, tmp_path, mark):
    server.__dict__.update(mark); server.breaks = [100_000, 70_000, 20_000]
    download(server.url, tmp_path/"set.zip", sha256=SHA, wait=0)
    assert (tmp_path/"set.zip").read_bytes() == BLOB
    assert [a for a,_ in server.asked] == [None, *(f"bytes={n*PIECE}-" for n in (6, 6+4, 6+4+1))]
    assert {b for _,b in server.asked[1:]} == {mark["etag"] if mark["etag"] == '"v1"' else mark["modified"]}

@hyp(max_examples=15, deadline=None)
@given(st.lists(st.integers(PIECE, 120_000), max_size=6))
def test_any_breaks_give_the_same_bytes(breaks):
    s = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    s.__dict__.update(blob=BLOB, asked=[], breaks=list(breaks), ranges=True, etag='"v1"', modified="", length=True, status=0, shift=0)
    threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    try:
        with tempfile.TemporaryDirectory() as d:
            assert download(f"http://127.0.0.1:{s.server_port}/x", Path(d)/"x", wait=0).read_bytes() == BLOB
    finally: s.shutdown(); s.server_close()

def test_a_killed_download_goes_on_later(server, tmp_path):
    server.breaks = [6*PIECE, 0, 0]
    with pytest.raises(ConnectionError, match="set.zip could not be fetched .* 98,304 bytes that arrived are kept.* put it at .*set.zip"):
        download(server.url, tmp_path/"set.zip", tries=2, wait=0)
    assert not (tmp_path/"set.zip").exists() and (tmp_path/"set.zip.part").stat().st_size == 6*PIECE
    download(server.url, tmp_path/"set.zip", md5=MD5, wait=0)
    assert server.asked[-1][0] == "bytes=98304-" and visible(tmp_path) == ["set.zip"]

def test_everything_had_arrived_but_the_name(server, tmp_path):
    (tmp_path/"set.zip.part").write_bytes(BLOB); (tmp_path/"set.zip.tag").write_text('"v1"')
    assert download(server.url, tmp_path/"set.zip", md5=MD5, wait=0).read_bytes() == BLOB
    assert len(server.asked) == 1 and visible(tmp_path) == ["set.zip"]

def test_a_part_longer_than_the_file_starts_anew(server, tmp_path):
    (tmp_path/"set.zip.part").write_bytes(BLOB+b"more"); (tmp_path/"set.zip.tag").write_text('"v1"')
    assert download(server.url, tmp_path/"set.zip", wait=0).read_bytes() == BLOB

def test_a_file_changed_meanwhile_is_not_mixed(server, tmp_path):
    server.breaks = [100_000, 0]
    with pytest.raises(ConnectionError): download(server.url, tmp_path/"set.zip", tries=1, wait=0)
    server.blob,server.etag,server.breaks = BLOB[::-1],'"v2"',[]
    assert download(server.url, tmp_path/"set.zip", wait=0).read_bytes() == BLOB[::-1]

def test_a_part_of_unknown_origin_is_not_continued(server, tmp_path):
    (tmp_path/"set.zip.part").write_bytes(b"x"*1000)
    assert download(server.url, tmp_path/"set.zip", wait=0).read_bytes() == BLOB and server.asked == [(None,None)]

@pytest.mark.parametrize("kind", [dict(ranges=False), dict(etag=""), dict(shift=7)])
def test_a_server_that_cannot_resume(server, tmp_path, kind):
    server.__dict__.update(kind); server.breaks = [100_000]
    assert download(server.url, tmp_path/"set.zip", md5=MD5, tries=4, wait=0).read_bytes() == BLOB

def test_a_server_that_never_finishes(server, tmp_path):
    server.ranges,server.breaks = False,[50_000, 10_000]*50
    with pytest.raises(ConnectionError): download(server.url, tmp_path/"set.zip", tries=3, wait=0)
    assert len(server.asked) == 4

def test_a_length_that_is_not_told(server, tmp_path):
    server.length = False
    assert download(server.url, tmp_path/"set.zip", md5=MD5, wait=0).read_bytes() == BLOB

# ---------- what goes wrong

@pytest.mark.parametrize("kw", [dict(md5="0"*32), dict(sha256="0"*64)])
def test_wrong_checksum(server, tmp_path, kw):
    with pytest.raises(ValueError, match=f"its {list(kw)[0]} is .* should be 000"): download(server.url, tmp_path/"set.zip", wait=0, **kw)
    assert visible(tmp_path) == []

def test_a_wrong_file_in_its_place_is_not_removed(server, tmp_path):
    (tmp_path/"set.zip").write_bytes(b"mine")
    with pytest.raises(ValueError, match="set.zip is not the file that was expected: .* Remove it"): download(server.url, tmp_path/"set.zip", md5=MD5)
    assert (tmp_path/"set.zip").read_bytes() == b"mine" and server.asked == []

@pytest.mark.parametrize("status, asked", [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_a_server_that_refuses(server, tmp_path, status, asked):
    server.status = status
    with pytest.raises(ConnectionError, match=f"{status} .*put it at"): download(server.url, tmp_path/"set.zip", tries=3, wait=0)
    assert len(server.asked) == asked and visible(tmp_path) == []

def test_offline(tmp_path):
    with Refusing() as port, pytest.raises(ConnectionError, match=r"set.zip could not be fetched from http://127.0.0.1:\d+/set.zip: .*refused.* put it at .*set.zip"):
        download(f"http://127.0.0.1:{port}/set.zip", tmp_path/"set.zip", tries=1)

def test_a_url_that_is_none(tmp_path):
    with pytest.raises(ConnectionError, match="could not be fetched"): download("set.zip", tmp_path/"set.zip", wait=60)

def test_silence_ends(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)); s.listen()
        with pytest.raises(ConnectionError, match="timed out"): download(f"http://127.0.0.1:{s.getsockname()[1]}/x", tmp_path/"x", tries=1, timeout=.2)

def test_a_full_disk_says_so(server, tmp_path, monkeypatch):
    def full(*a, **kw): raise OSError(28, "No space left on device")
    monkeypatch.setattr(transfer, "_fetch", full)
    with pytest.raises(OSError, match="No space left"): download(server.url, tmp_path/"set.zip", wait=0)
    assert visible(tmp_path) == []

def test_several_want_the_same_file(server, tmp_path):
    with ThreadPoolExecutor(4) as pool: fs = list(pool.map(lambda _: download(server.url, tmp_path/"set.zip", md5=MD5, wait=0), range(4)))
    assert len(server.asked) == 1 and fs[0].read_bytes() == BLOB

# ---------- a whole set, from the server to the splits

def pack(files, kind="w:gz"):
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode=kind) as t:
        for name,data in files.items():
            m = tarfile.TarInfo(name); m.size = len(data); t.addfile(m, io.BytesIO(data))
    return b.getvalue()

def test_cifar_from_the_server(server, tmp_path, monkeypatch):
    d = {f"cifar-10-batches-py/{f}": pickle.dumps(dict(data=np.full((40,3072), i, np.uint8), labels=list(range(10))*4), 2)
        for i,f in enumerate([f"data_batch_{i}" for i in range(1,6)]+["test_batch"])}
    server.blob = pack(d | {"cifar-10-batches-py/batches.meta": pickle.dumps(dict(label_names=list("abcdefghij")), 2)})
    base = server.url.rsplit("/", 1)[0]+"/"
    monkeypatch.setitem(room._sources, "cifar10", ("cifar-10-batches-py", "cifar-10-python.tar.gz", base, hashlib.md5(server.blob).hexdigest()))
    for _ in range(2): s = load_set("cifar10")
    assert [len(v) for v in s.splits.values()] == [180, 20, 40] and len(server.asked) == 1
    assert visible(tmp_path/"data") == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
    monkeypatch.setitem(room._sources, "cifar10", ("cifar-10-batches-py", "cifar-10-python.tar.gz", base, "0"*32))
    with pytest.raises(ValueError, match="is not the file that was expected"):
        (tmp_path/"else").mkdir(); (tmp_path/"else"/"cifar-10-python.tar.gz").write_bytes(server.blob)
        load_set("cifar10", root=tmp_path/"else")

def test_sources_are_as_published():
    assert {k:(v[1], v[3]) for k,v in room._sources.items()} == dict(
        cifar10=("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"), cifar100=("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
        tiny_imagenet=("tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"))

# ---------- archives

def write(path, files, kind):
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            for n,d in files.items(): z.writestr(n, d)
    else: path.write_bytes(pack(files, kind))
    return path

KINDS = ["zip", "w", "w:gz", "w:bz2", "w:xz"]

@pytest.mark.parametrize("kind", KINDS)
def test_unpacks_and_unwraps(tmp_path, kind):
    a = write(tmp_path/"set", {"top/x/1.txt": b"1", "top/y/2.txt": b"2", "top/./y/3.txt": b"3"}, kind)
    unpack(a, tmp_path/"out")
    assert visible(tmp_path/"out") == ["x", "y"] and (tmp_path/"out"/"y"/"3.txt").read_bytes() == b"3"
    unpack(a, tmp_path/"whole", unwrap=False)
    assert visible(tmp_path/"whole") == ["top"] and visible(tmp_path) == ["out", "set", "whole"]
    assert stat.S_IMODE((tmp_path/"out").stat().st_mode) == stat.S_IMODE(tmp_path.joinpath("out", "x").stat().st_mode)

@pytest.mark.parametrize("kind", ["zip", "w:gz"])
@pytest.mark.parametrize("name", ["../escaped", "a/../../escaped", "{root}/escaped", "a/../../out2/escaped", "C:/escaped"])
def test_names_that_lead_out(tmp_path, kind, name):
    a = write(tmp_path/"set", {"a/fine": b"1", name.format(root=tmp_path): b"2"}, kind)
    with pytest.raises(ValueError, match="leads out of the folder"): unpack(a, tmp_path/"out")
    assert visible(tmp_path) == ["set"] and not (tmp_path.parent/"escaped").exists()

def zip_special(kind=stat.S_IFLNK):
    def make(path):
        with zipfile.ZipFile(path, "w") as z:
            m = zipfile.ZipInfo("a/link"); m.create_system = 3; m.external_attr = (kind | 0o777) << 16
            z.writestr(m, "/etc"); z.writestr("a/link/passwd", "x")
    return make

def test_folders_of_a_zip_of_windows(tmp_path):
    "Divided by backslashes they are folders, and lead as little out as others"
    unpack(write(tmp_path/"set", {"a\\1.txt":b"1", "b\\2.txt":b"2"}, "zip"), tmp_path/"out")
    assert visible(tmp_path/"out") == ["a", "b"]
    with pytest.raises(ValueError, match="leads out"): unpack(write(tmp_path/"bad", {"..\\escaped":b"1"}, "zip"), tmp_path/"other")

@pytest.mark.parametrize("kind", ["zip", "w:gz"])
@pytest.mark.parametrize("names", [("a/1.txt", "a/1.txt"), ("a/1.txt", "a/./1.txt"), ("a", "a/1.txt"), ("a/1.txt", "a")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice(tmp_path, kind, names):
    "Whether one after the other is kept depends on the program: one may show what another does not"
    class Twice(dict):
        def items(self): return zip(names, (b"first", b"second"))
    a = write(tmp_path/"set", Twice(), kind)
    with pytest.raises(ValueError, match="set holds 'a.* twice"): unpack(a, tmp_path/"out")
    assert visible(tmp_path) == ["set"]

def tar_special(kind):
    def make(path):
        with tarfile.open(path, "w") as t:
            m = tarfile.TarInfo("a/special"); m.type,m.linkname = kind,"/etc/passwd"; t.addfile(m)
    return make

@pytest.mark.parametrize("make", [zip_special(), zip_special(stat.S_IFIFO), zip_special(stat.S_IFCHR), *map(tar_special, (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE))])
def test_links_and_devices(tmp_path, make):
    make(tmp_path/"set")
    with pytest.raises(ValueError, match="is a link or a device"): unpack(tmp_path/"set", tmp_path/"out")
    assert visible(tmp_path) == ["set"]

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("harm", ["cut", "hurt"])
def test_broken_archives(tmp_path, kind, harm):
    a = write(tmp_path/"set", {f"a/{i}.txt": BLOB[:50_000] for i in range(3)}, kind); b = bytearray(a.read_bytes())
    if harm == "hurt" and kind == "w": pytest.skip("a plain tar has no checksum of contents")
    if harm == "hurt": b[40_000:40_100] = bytes(100)
    a.write_bytes(b[:len(b)//2] if harm == "cut" else b)
    with pytest.raises(ValueError, match="set is not a whole zip or tar file .* copy or fetch it once more"): unpack(a, tmp_path/"out")
    assert visible(tmp_path) == ["set"]

@pytest.mark.parametrize("contents", [b"", b"<html>not found</html>"])
def test_no_archive_at_all(tmp_path, contents):
    (tmp_path/"set.zip").write_bytes(contents)
    with pytest.raises(ValueError, match="is not a whole zip or tar file"): load_set(tmp_path/"set.zip")

def test_an_empty_archive(tmp_path):
    write(tmp_path/"set", {}, "zip")
    with pytest.raises(ValueError, match="is empty"): unpack(tmp_path/"set", tmp_path/"out")

def test_a_folder_in_use_is_left_alone(tmp_path):
    a = write(tmp_path/"set.zip", {"a/1": b"1"}, "zip"); (tmp_path/"out").mkdir(); (tmp_path/"out"/"mine").write_text("x")
    with pytest.raises(ValueError, match="out is not empty; rename it"): unpack(a, tmp_path/"out")
    assert visible(tmp_path/"out") == ["mine"]

def test_another_archive_of_the_same_name(server, tmp_path):
    (tmp_path/"data").mkdir()
    b = io.BytesIO(); Image.new("RGB", (4,4)).save(b, "png"); png = b.getvalue()
    files = {f"{c}/{i}.png": png for c in "ab" for i in range(10)}
    write(tmp_path/"data"/"leaves.zip", files, "zip")
    assert len(load_set("leaves.zip").splits["test"]) == 4
    write(tmp_path/"data"/"leaves.zip", files | {"b/10.png": png}, "zip")
    with pytest.raises(ValueError, match="was not unpacked from this leaves.zip"): load_set("leaves.zip")


# ---------- archives that fill the disk, and damage that tarfile passes over

def zeros(path, size):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a/x.png", bytes(1000))
            file.writestr("b/y.png", bytes(size))
    else:
        with tarfile.open(path, "w:gz") as file:
            member = tarfile.TarInfo("a/x.png")
            member.size = size
            file.addfile(member, io.BytesIO(bytes(size)))
    return path

@pytest.mark.parametrize("name", ["small.zip", "small.tar.gz"])
def test_an_archive_that_makes_far_more_than_it_is_is_refused(tmp_path, name):
    archive = zeros(tmp_path/name, 1 << 25)
    with pytest.raises(ValueError, match=f"{name}.*over 100 times its own length"): unpack(archive, tmp_path/"out")
    assert visible(tmp_path) == [name] and not list(tmp_path.glob(".out*"))
    assert unpack(zeros(tmp_path/name, 1 << 20), tmp_path/"out").is_dir(), "little is no harm"

@pytest.mark.parametrize("name", ["small.zip", "small.tar.gz"])
def test_an_archive_for_which_there_is_no_room_is_refused(tmp_path, monkeypatch, name):
    archive = zeros(tmp_path/name, 1 << 20)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: type("Usage", (), dict(free=1 << 19)))
    with pytest.raises(ValueError, match=f"{name}.*MiB that are free"): unpack(archive, tmp_path/"out")

def test_a_full_disk_names_the_archive_and_the_file(tmp_path, monkeypatch):
    archive = zeros(tmp_path/"set.zip", 1000)
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(transfer.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="set.zip.*No space left"): unpack(archive, tmp_path/"out")

@pytest.mark.parametrize("damage", ["head", "cut", "end"])
def test_a_tar_that_is_damaged_in_the_middle_is_not_a_shorter_one(tmp_path, damage):
    path = tmp_path/"set.tar"
    with tarfile.open(path, "w") as file:
        for name in ("a/x.png", "b/y.png"):
            member = tarfile.TarInfo(name)
            member.size = 512
            file.addfile(member, io.BytesIO(bytes(512)))
    raw = bytearray(path.read_bytes())
    if damage == "head": raw[1024 + 3] ^= 1
    path.write_bytes(raw[:1024] if damage == "cut" else raw[:2048] if damage == "end" else raw)
    with pytest.raises(ValueError, match="set.tar is not a whole"): unpack(path, tmp_path/"out")

@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_full_disk_names_what_is_downloaded_and_what_helps(server, tmp_path):
    (tmp_path/"set.zip.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device; make room there.*set.zip"): download(server.url, tmp_path/"set.zip", wait=0)
    assert not (tmp_path/"set.zip").exists()
