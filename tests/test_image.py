"One file as an array: values kept, or refused by name"
import pickle
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import AppendingTiffWriter

from data_helpers import own_folders
from vitnb.data.sets import load_set
from vitnb.data.image import as_rgb, has_pages, load_npy, read_grey, read_image, read_map, read_native, readers, UnreadableImage, widen

@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    a = as_rgb(Image.new(mode, (5,3)))
    assert a.shape == (3,5,3) and a.dtype == np.uint8 and a.flags.writeable

def test_values_of_deep_and_transparent_images():
    ramp = np.array([[0, 257, 65535]])
    assert as_rgb(Image.fromarray(ramp.astype(np.uint16)))[0,:,1].tolist() == [0,1,255]
    assert as_rgb(Image.fromarray(ramp.astype(np.int32)))[0,:,1].tolist() == [0,1,255]
    assert as_rgb(Image.fromarray(np.array([[0, .5, 1]], dtype=np.float32)))[0,:,2].tolist() == [0,128,255]
    assert as_rgb(Image.new("RGBA", (1,1), (10,20,30,0)))[0,0].tolist() == [255]*3
    assert as_rgb(Image.new("RGBA", (1,1), (10,20,30,255)))[0,0].tolist() == [10,20,30]
    assert as_rgb(Image.new("CMYK", (1,1), (0,0,0,255)))[0,0].tolist() == [0]*3

def test_palette_with_transparency(tmp_path):
    img = Image.new("P", (2,1)); img.putpalette([255,0,0, 0,255,0]); img.putpixel((1,0), 1)
    img.save(tmp_path/"p.png", transparency=0)
    assert read_image(tmp_path/"p.png")[0].tolist() == [[255]*3, [0,255,0]]

def test_values_without_a_known_white(tmp_path):
    Image.fromarray(np.array([[0., 7.]], dtype=np.float32)).save(tmp_path/"f.tif")
    Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)).save(tmp_path/"i.tif")
    for f in ("f.tif", "i.tif"):
        with pytest.raises(UnreadableImage, match="white is unknown"): read_image(tmp_path/f)
    for value in (np.nan, np.inf): # another reader or white is no remedy
        Image.fromarray(np.array([[value, .5]], dtype=np.float32)).save(tmp_path/"n.tif")
        with pytest.raises(UnreadableImage, match="values that are not finite"): read_image(tmp_path/"n.tif")

def test_telephone_picture_stands_upright(tmp_path):
    img = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2,3)); exif = img.getexif(); exif[0x0112] = 6
    img.save(tmp_path/"side.png", exif=exif)
    assert read_image(tmp_path/"side.png")[...,0].tolist() == [[3,0],[4,1],[5,2]]

def test_unreadable_image_survives_a_process():
    e = pickle.loads(pickle.dumps(UnreadableImage("a.png", "cut")))
    assert (e.path, e.reason, str(e)) == ("a.png", "cut", "a.png: cut")

def test_missing_file(tmp_path):
    with pytest.raises(UnreadableImage, match="No such file"): read_image(tmp_path/"none.png")

def test_readers_keep_what_a_file_has(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (5,7), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path/"deep.png")
    Image.fromarray(deep).save(tmp_path/"deep.tif")
    bands = np.random.default_rng(0).random((5,7,6)).astype(np.float32)
    np.save(tmp_path/"bands.npy", bands)
    for f in ("deep.png", "deep.tif"):
        for read in (read_native, read_grey):
            got = read(tmp_path/f)
            assert got.shape == (5,7,1) and (got[...,0] == deep).all() and (widen(got)[...,0] == deep).all() and widen(got).dtype == np.int32
        assert readers["rgb"](tmp_path/f).dtype == np.uint8
    assert (read_native(tmp_path/"bands.npy") == bands).all()
    colours = np.random.default_rng(0).integers(0, 256, (5,7,3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path/"c.png")
    assert (read_native(tmp_path/"c.png") == colours).all() and (read_grey(tmp_path/"c.png")[...,0] == np.array(Image.fromarray(colours).convert("L"))).all()

def test_what_is_no_image_or_no_map(tmp_path):
    np.save(tmp_path/"four.npy", np.zeros((2,2,2,2)))
    np.save(tmp_path/"text.npy", np.array(["a"]))
    (tmp_path/"broken.npy").write_bytes(b"\x93NUMPY")
    for f,says in (("four.npy", "no image"), ("text.npy", "not numbers"), ("broken.npy", "broken.npy"), ("none.npy", "No such file")):
        with pytest.raises(UnreadableImage, match=says): read_native(tmp_path/f)
    Image.new("RGB", (2,2)).save(tmp_path/"rgb.png")
    for f in ("rgb.png", "four.npy"):
        with pytest.raises(UnreadableImage, match="one whole number a pixel"): read_map(tmp_path/f)
    palette = Image.new("P", (2,1))
    palette.putpalette([9,9,9, 200,0,0])
    palette.putpixel((1,0), 1)
    palette.save(tmp_path/"p.png")
    assert read_map(tmp_path/"p.png").tolist() == [[0,1]] # a palette's numbers are the classes


def test_arrays_are_read_by_many_threads_at_once(tmp_path):
    "Two headers parsed at once were a SystemError of Python's now and then"
    files = [tmp_path/f"{i}.npy" for i in range(32)]
    for i,file in enumerate(files): np.save(file, np.full((2, 3), i))
    with ThreadPool(8) as pool: found = pool.map(load_npy, files*100, chunksize=1)
    assert [int(a[0,0]) for a in found] == list(range(32))*100

# ------------------------------------------------------------------------------------------------------------- depth

@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("name", ["g.png", "g.tif"])
def test_greys_of_fewer_bits_than_their_file_are_asked_about(tmp_path, bits, name):
    values = np.linspace(0, 2**bits - 1, 256).astype(np.uint16).reshape(16,16)
    Image.fromarray(values).save(tmp_path/name)
    with pytest.raises(UnreadableImage, match=f"load the set with white={2**bits - 1}, or with reader='grey'"): read_image(tmp_path/name)
    assert (readers[f"rgb/{2**bits - 1}"](tmp_path/name)[...,1] == np.rint(values/(2**bits - 1)*255)).all()
    assert all((readers[reader](tmp_path/name)[...,0] == values).all() for reader in ("grey", "native"))

@pytest.mark.parametrize("most, dtype, fine", [(65535, np.uint16, True), (16384, np.uint16, True), (0, np.uint16, True), (16383, np.uint16, False), (1., np.float32, True), (.1, np.float32, False), (4095, np.int32, False)])
def test_the_brightest_pixel_decides(tmp_path, most, dtype, fine):
    Image.fromarray(np.array([[0, most]], dtype=dtype)).save(tmp_path/"g.tif")
    if fine: assert read_image(tmp_path/"g.tif")[0,0,0] == 0
    else:
        with pytest.raises(UnreadableImage, match="white is unknown"): read_image(tmp_path/"g.tif")
    assert readers[f"rgb/{most or 1}"](tmp_path/"g.tif")[0,1,0] == (255 if most else 0)

def write_colours(path, most):
    "A PNG of 16 bits a colour, which Pillow does not write"
    import struct, zlib
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.linspace(0, most, 4*4*3).reshape(4,4,3))
    def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path

def test_colours_of_sixteen_bits(tmp_path):
    "Pillow gives their upper halves: right where they fill the range, nothing but black where they are 12 bits"
    assert read_image(write_colours(tmp_path/"full.png", 65535))[-1,-1].tolist() == [245, 250, 255]
    dark = write_colours(tmp_path/"dark.png", 4095)
    for reader in ("rgb", "rgb/4095", "native"):
        with pytest.raises(UnreadableImage, match="colours of 16 bits, of which Pillow gives the upper 8"): readers[reader](dark)

def test_white_is_part_of_the_reader(tmp_path):
    for i in range(20):
        for c in "ab": (tmp_path/"s"/c).mkdir(parents=True, exist_ok=True); Image.fromarray(np.full((4,4), 100*i + 2000, np.uint16)).save(tmp_path/"s"/c/f"{i}.png")
    with pytest.raises(ValueError, match="not one training image .* white=4095"): load_set(tmp_path/"s").check()
    s = load_set(tmp_path/"s", white=4095)
    assert s.check() == {} and s.reader == "rgb/4095" and s.fingerprint != load_set(tmp_path/"s").fingerprint
    assert s.read("train", 0)[0,0,0] == round((100*int(s.splits["train"].items[0][2:-4]) + 2000)/4095*255)
    deep = load_set(tmp_path/"s", reader="grey")
    assert deep.check() == {} and deep.read("train", 0).dtype == np.uint16
    for kw,says in ((dict(reader="grey"), "leave one out"), (dict(white=-1), "must be a number above 0"), (dict(name="digits"), "is for files")):
        with pytest.raises(ValueError, match=says): load_set(**{"name":tmp_path/"s", "white":4095, **kw})
    with pytest.raises(ValueError, match="unknown reader 'rgb/x'"): load_set(tmp_path/"s", reader="rgb/x")

def test_what_pillow_finds_too_large_names_its_limit(tmp_path, monkeypatch):
    Image.new("1", (400,300)).save(tmp_path/"scan.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(UnreadableImage, match="PIL.Image.MAX_IMAGE_PIXELS"): read_image(tmp_path/"scan.png")


def paged(path, kind="uint16", count=3, **kw):
    "Write a file of several pages, and give them as arrays"
    rng = np.random.default_rng(0)
    size = (16, 24) if kind == "uint16" else (16, 24, 3)
    pages = [rng.integers(0, np.iinfo(kind).max + 1, size, dtype=kind) for _ in range(count)]
    first, *others = map(Image.fromarray, pages)
    first.save(path, save_all=True, append_images=others, **kw)
    return [page.reshape(16, 24, -1) for page in pages]


@pytest.mark.parametrize("name, kind, kw", [("a.tif", "uint16", {}), ("a.tif", "uint8", dict(compression="tiff_lzw")), ("a.png", "uint8", {}), ("a.webp", "uint8", dict(lossless=True))])
def test_pages_are_told_and_can_all_be_read(tmp_path, name, kind, kw):
    pages = paged(tmp_path/name, kind, **kw)
    assert has_pages(tmp_path/name) and np.array_equal(read_native(tmp_path/name), pages[0])
    assert np.array_equal(readers["pages"](tmp_path/name), np.concatenate(pages, 2))


def test_a_single_page_and_its_preview_are_one(tmp_path):
    big = Image.fromarray(np.zeros((16, 24), np.uint8))
    writer = AppendingTiffWriter(str(tmp_path/"a.tif"), True)
    for image, kind in ((big, 0), (big.resize((6, 4)), 1)):
        image.save(writer, format="TIFF", tiffinfo={254: kind})
        writer.newFrame()
    writer.close()
    big.save(tmp_path/"b.jpg"); (tmp_path/"c.tif").write_bytes(b"II*\0 broken")
    assert [has_pages(tmp_path/name) for name in ("a.tif", "b.jpg", "c.tif", "none.tif")] == [False]*4
    assert readers["pages"](tmp_path/"a.tif").shape == (16, 24, 1)
    first, other = Image.new("L", (4, 4)), Image.new("L", (4, 5))
    first.save(tmp_path/"d.tif", save_all=True, append_images=[other])
    with pytest.raises(UnreadableImage, match="pages differ"): readers["pages"](tmp_path/"d.tif")


@pytest.mark.parametrize("head, what", [(b"\0\0\0\x18ftypheic\0\0\0\0mif1", "HEIC photograph"), (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"), (b"%PDF-1.4 \xff", "PDF"), ("<html>é</html>".encode(), "text and no image: '<html>é")])
def test_what_is_no_image_is_called_by_its_name(tmp_path, head, what):
    (tmp_path/"a.jpg").write_bytes(head)
    with pytest.raises(UnreadableImage, match=what): read_image(tmp_path/"a.jpg")
