"Films of DICOM files: values in their order, and what is no film is refused by name"
from types import SimpleNamespace

import dicom_files
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from vitnb.data import dicom
from vitnb.data.dicom import DICOM_TAGS, open_dicom, read_dicom
from vitnb.data.film import read_film, show_film
from vitnb.data.image import UnreadableImage
from vitnb.data.window import FILM_WHITE, view_film, voi_window

RAMP = np.arange(4096, dtype=np.uint16).reshape(64,64)


def test_full_range_of_twelve_bits_low_values_white(tmp_path):
    path = dicom_files.write(tmp_path/"a.dcm", RAMP, 12, PhotometricInterpretation="MONOCHROME1")
    shown = read_film(path, window="full")[...,0]/FILM_WHITE*255
    assert shown[0,0] == 255 and abs(shown[32,0] - 127.5) < .6 and shown[-1,-1] == 0


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", [None, "INVERSE"])
def test_low_white_and_inverse_together_are_one_inversion(tmp_path, kind, shape):
    tags = {} if shape is None else dict(PresentationLUTShape=shape)
    raw = read_dicom(dicom_files.write(tmp_path/"a.dcm", RAMP, 12, PhotometricInterpretation=kind, **tags))
    assert raw.invert == (kind == "MONOCHROME1" or shape == "INVERSE")


def test_rescaling_is_applied_once_and_stays_whole(tmp_path):
    raw = read_dicom(dicom_files.write(tmp_path/"a.dcm", np.full((4,4), 1000, np.uint16), 12, RescaleSlope=2, RescaleIntercept=-1024))
    assert (raw.values == 976).all() and raw.values.dtype.kind == "i" and raw.span == (-1024, 2*4095 - 1024)
    raw = read_dicom(dicom_files.write(tmp_path/"b.dcm", np.full((4,4), 1000, np.uint16), 12, RescaleSlope="0.5", RescaleIntercept=1))
    assert (raw.values == 501).all()


def test_rescaling_and_window_are_found_in_the_functional_groups(tmp_path):
    value, view, group = Dataset(), Dataset(), Dataset()
    value.RescaleSlope, value.RescaleIntercept = 2, -1024
    view.WindowCenter, view.WindowWidth = 40, 400
    group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [value], [view]
    path = dicom_files.write(tmp_path/"a.dcm", np.full((4,4), 1000, np.uint16), 12, SharedFunctionalGroupsSequence=[group], NumberOfFrames=1)
    raw = read_dicom(path)
    assert (raw.values == 976).all() and [name for name,_ in raw.views] == ["LINEAR window 40/400"]


def test_a_table_of_the_modality_takes_the_place_of_slope_and_intercept(tmp_path):
    item = dicom_files.lut(np.arange(4096)[::-1], 0, 12)
    item.ModalityLUTType = "US"
    raw = read_dicom(dicom_files.write(tmp_path/"a.dcm", RAMP, 12, ModalityLUTSequence=[item]))
    assert (raw.values == 4095 - RAMP.astype(int)).all() and raw.span == (0, 4095)


def test_the_first_window_is_taken_unless_another_is_asked_for(tmp_path):
    path = dicom_files.write(tmp_path/"a.dcm", RAMP, 12, WindowCenter=[40, 400], WindowWidth=[400, 2000])
    for view,(c,w) in enumerate([(40, 400), (400, 2000)]):
        film,notes = show_film(path, dicom_options(window="voi", view=view))
        assert (film == np.rint(FILM_WHITE*voi_window(RAMP, c, w))).all() and notes[0] == f"LINEAR window {c}/{w} (view {view+1} of 2)"
    with pytest.raises(UnreadableImage, match="views 0 to 1"): read_film(path, window="voi", view=2)


def dicom_options(**kw):
    from vitnb.data.film import film_options
    return film_options(**kw)


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_the_function_of_the_window_is_the_files(tmp_path, function):
    path = dicom_files.write(tmp_path/"a.dcm", RAMP, 12, WindowCenter=2000, WindowWidth=900, VOILUTFunction=function)
    assert (read_film(path, window="voi")[...,0] == np.rint(FILM_WHITE*voi_window(RAMP, 2000, 900, function))).all()


def test_a_table_of_interest_goes_before_the_window(tmp_path):
    table = dicom_files.lut(np.minimum(np.arange(4096)//2, 1023), 0, 10)
    path = dicom_files.write(tmp_path/"a.dcm", RAMP, 12, VOILUTSequence=[table], WindowCenter=40, WindowWidth=400)
    film,notes = show_film(path, dicom_options(window="voi"))
    assert notes[0].startswith("table 1 (view 1 of 2)")
    assert (film == np.rint(FILM_WHITE*np.minimum(RAMP.astype(int)//2, 1023)/1023)).all()


def test_declared_padding_is_black_and_does_not_count(tmp_path):
    inside = np.random.default_rng(0).integers(1000, 3001, (32,32)).astype(np.int16)
    framed = np.full((64,64), -2000, np.int16)
    framed[16:48,16:48] = inside
    whole = read_film(dicom_files.write(tmp_path/"a.dcm", framed, 16, PixelPaddingValue=-2000))[...,0]
    alone = read_film(dicom_files.write(tmp_path/"b.dcm", inside, 16))[...,0]
    assert (whole[16:48,16:48] == alone).all() and whole[:16].max() == 0
    framed[:4] = -1990
    raw = read_dicom(dicom_files.write(tmp_path/"c.dcm", framed, 16, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1985))
    assert raw.valid.sum() == 32*32


@pytest.mark.parametrize("words,signed,values", [([0x0FFF, 0x0800, 0x07FF], True, [-1, -2048, 2047]), ([0xF001, 0x0800, 0x0FFF], False, [1, 2048, 4095])])
def test_words_have_the_sign_and_the_bits_of_the_header(tmp_path, words, signed, values):
    path = dicom_files.write(tmp_path/"a.dcm", np.array([words], np.uint16), 12, PixelRepresentation=int(signed))
    assert read_dicom(path).values[0].tolist() == values


def test_stored_bits_may_lie_higher_in_the_word(tmp_path):
    path = dicom_files.write(tmp_path/"a.dcm", RAMP << 4, 12, HighBit=15)
    assert (read_dicom(path).values == RAMP).all()


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEG2000Lossless", "JPEGLSLossless", "RLELossless"])
@pytest.mark.parametrize("bits", [12, 16])
def test_compressed_films_are_those_that_were_compressed(tmp_path, syntax, bits):
    pixels = np.random.default_rng(0).integers(0, 2**bits, (32,48)).astype(np.uint16)
    path = dicom_files.compress(dicom_files.write(tmp_path/"a.dcm", pixels, bits), tmp_path/"b.dcm", syntax)
    assert open_dicom(path).file_meta.TransferSyntaxUID.is_compressed
    assert (read_dicom(path).values == pixels).all()


def test_a_compressed_film_deeper_than_its_header_warns():
    with pytest.warns(UserWarning, match="8 bits"): values = dicom.stored_values(np.array([[4095]], np.uint16), 8, False, True)
    assert values[0,0] == 4095


def test_a_missing_decoder_names_the_transfer_syntax_and_the_pip_line(tmp_path, monkeypatch):
    path = dicom_files.compress(dicom_files.write(tmp_path/"a.dcm", RAMP, 12), tmp_path/"b.dcm", "JPEG2000Lossless")
    nothing = SimpleNamespace(is_available=False, missing_dependencies=["gdcm - requires gdcm>=3.0.10"])
    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda syntax: nothing)
    with pytest.raises(ImportError, match=r'JPEG 2000.*pip install "vitnb\[chest\]".*gdcm'): read_dicom(path)


def test_pydicom_that_is_missing_is_named_with_the_pip_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ImportError, match=r'pip install "vitnb\[chest\]"'): read_dicom(tmp_path/"a.dcm")


def test_what_is_no_film_is_refused_by_name(tmp_path):
    report = dicom_files.dataset(RAMP, 12)
    del report.PixelData
    report.save_as(tmp_path/"report.dcm", enforce_file_format=True)
    with pytest.raises(UnreadableImage, match="no pixel data"): read_dicom(tmp_path/"report.dcm")
    frames = np.stack([RAMP, RAMP])
    with pytest.raises(UnreadableImage, match="2 frames"): read_dicom(dicom_files.write(tmp_path/"f.dcm", frames, 12, NumberOfFrames=2))
    with pytest.raises(UnreadableImage, match="is RGB"): read_dicom(dicom_files.write(tmp_path/"c.dcm", RAMP, 12, PhotometricInterpretation="RGB"))
    (tmp_path/"text.dcm").write_text("no film at all")
    with pytest.raises(UnreadableImage, match="no DICOM file"): read_dicom(tmp_path/"text.dcm")
    with pytest.raises(UnreadableImage): read_dicom(tmp_path/"nowhere.dcm")


def test_a_film_that_was_cut_short_is_refused(tmp_path):
    path = dicom_files.write(tmp_path/"a.dcm", RAMP, 12)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(UnreadableImage): read_dicom(path)


def test_a_mirrored_or_turned_film_is_shown_upright_and_a_lateral_one_refused(tmp_path):
    seen = RAMP[:40]
    for n,(stored,ways) in enumerate([(seen, ["L", "F"]), (seen[:,::-1], ["R", "F"]), (seen[::-1], ["L", "H"]), (seen.T, ["F", "L"])]):
        raw = read_dicom(dicom_files.write(tmp_path/f"{n}.dcm", stored, 12, PatientOrientation=ways))
        assert (raw.values == seen).all()
    with pytest.raises(UnreadableImage, match="lateral"): read_dicom(dicom_files.write(tmp_path/"l.dcm", seen, 12, PatientOrientation=["A", "F"]))


def test_no_tag_of_a_person_is_parsed(tmp_path):
    ds = open_dicom(dicom_files.write(tmp_path/"a.dcm", RAMP, 12))
    assert not any(secret in str(ds) for secret in dicom_files.SECRETS)
    assert {e.keyword for e in ds} <= {*DICOM_TAGS, "SpecificCharacterSet"}


def test_burned_in_text_is_reported_and_never_assumed_absent(tmp_path):
    assert "text burned into the pixels: not said" in read_dicom(dicom_files.write(tmp_path/"a.dcm", RAMP, 12)).notes
    assert "text burned into the pixels: YES" in read_dicom(dicom_files.write(tmp_path/"b.dcm", RAMP, 12, BurnedInAnnotation="YES")).notes


def test_sixteen_bits_come_through(tmp_path):
    pixels = np.arange(65536, dtype=np.uint16).reshape(256,256)
    assert (read_film(dicom_files.write(tmp_path/"a.dcm", pixels, 16), window="full")[...,0] == pixels).all()
    assert view_film(read_dicom(tmp_path/"a.dcm"))[0].dtype == np.uint16
