"Large pictures of a notebook become files; small ones stay"
import base64

from vitnb.experiment.pictures import ALL_BYTES, PICTURE_BYTES, PictureShelf


def png(size): return base64.b64encode(bytes(range(256))*(size//256)).decode()


def test_a_large_picture_is_a_file_as_it_was(tmp_path):
    shelf = PictureShelf(tmp_path/"figures", tmp_path)
    large = png(400_000)
    data = shelf.bounded({"image/png":large, "text/plain":"a figure"}, 6)
    assert data == {"text/plain":"a figure", "text/markdown":"![figures/cell_007_1.png](figures/cell_007_1.png)"}
    assert (tmp_path/"figures"/"cell_007_1.png").read_bytes() == base64.b64decode(large)


def test_all_pictures_together_are_bounded(tmp_path):
    shelf = PictureShelf(tmp_path/"figures", tmp_path)
    kept = [shelf.bounded({"image/png":png(60_000)}, n) for n in range(50)]
    inside = sum(len(data.get("image/png", "")) for data in kept)
    assert ALL_BYTES*.9 < inside <= ALL_BYTES
    assert len(list((tmp_path/"figures").iterdir())) == sum("text/markdown" in data for data in kept)


def test_frames_of_one_display_share_a_file_and_count_once(tmp_path):
    shelf = PictureShelf(tmp_path/"figures", tmp_path)
    for _ in range(100): assert "image/png" in shelf.bounded({"image/png":png(60_000)}, 0, "live")
    for _ in range(5): shelf.bounded({"image/png":png(PICTURE_BYTES)}, 0, "large")
    assert [p.name for p in (tmp_path/"figures").iterdir()] == ["cell_001_1.png"]


def test_what_is_no_picture_stays(tmp_path):
    shelf = PictureShelf(tmp_path/"figures", tmp_path)
    for data in ({"image/png":"%"*PICTURE_BYTES + "a"*9}, {"text/html":"x"*900_000}, {"image/png":None} and {}): assert shelf.bounded(data, 0) == data or not data


def test_vector_graphics_are_text(tmp_path):
    shelf = PictureShelf(tmp_path/"my figures", tmp_path)
    assert "(my%20figures/cell_001_1.svg)" in shelf.bounded({"image/svg+xml":"<svg>" + "x"*400_000}, 0)["text/markdown"]
    assert (tmp_path/"my figures"/"cell_001_1.svg").read_text().startswith("<svg>")
