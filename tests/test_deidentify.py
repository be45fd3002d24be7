"A copy without its person: nothing of the old one is left, references hold, and it shows the same film"
import dicom_files
import numpy as np
import pydicom
import pytest

from vitnb.data.deidentify import deidentify_file, new_uid
from vitnb.data.dicom import read_dicom
from vitnb.data.image import UnreadableImage

PIXELS = np.random.default_rng(0).integers(0, 4096, (16,16)).astype(np.uint16)


def test_nothing_of_the_person_is_left_and_the_film_is_the_same(tmp_path):
    path = dicom_files.write(tmp_path/"a.dcm", PIXELS, 12, PhotometricInterpretation="MONOCHROME1", WindowCenter=40, WindowWidth=400)
    found = deidentify_file(path, tmp_path/"b.dcm", "a secret")
    data = found.path.read_bytes()
    assert not any(secret.encode() in data for secret in dicom_files.SECRETS) and any(secret.encode() in path.read_bytes() for secret in dicom_files.SECRETS)
    old,new = read_dicom(path), read_dicom(found.path)
    assert (old.values == new.values).all() and (old.invert, old.span) == (new.invert, new.span) and len(new.views) == 1
    assert not any(e.tag.is_private for e in pydicom.dcmread(found.path)) and found.dropped >= 4


def test_one_identifier_becomes_one_other_everywhere(tmp_path):
    files = [dicom_files.write(tmp_path/f"{i}.dcm", PIXELS, 12) for i in range(2)]
    copies = [pydicom.dcmread(deidentify_file(path, tmp_path/f"new{i}.dcm", "a secret").path) for i,path in enumerate(files)]
    ds = copies[0]
    assert ds.SOPInstanceUID == ds.ReferencedImageSequence[0].ReferencedSOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
    assert ds.SOPInstanceUID == copies[1].SOPInstanceUID != dicom_files.UID and len(ds.SOPInstanceUID) <= 64
    assert ds.StudyInstanceUID not in (ds.SOPInstanceUID, dicom_files.UID + ".1")
    assert pydicom.dcmread(deidentify_file(files[0], tmp_path/"other.dcm", "another").path).SOPInstanceUID != ds.SOPInstanceUID
    assert ds.SOPClassUID == pydicom.uid.DigitalXRayImageStorageForPresentation


def test_new_identifiers_are_valid():
    for n in range(200): assert pydicom.uid.UID(new_uid(f"1.2.{n}", "key")).is_valid and len(new_uid(f"1.2.{n}", "key")) <= 44


def test_burned_in_text_is_reported_and_never_assumed_absent(tmp_path):
    plain = dicom_files.write(tmp_path/"a.dcm", PIXELS, 12)
    assert deidentify_file(plain, tmp_path/"b.dcm", "s").burned_in == "not said"
    assert deidentify_file(dicom_files.write(tmp_path/"c.dcm", PIXELS, 12, BurnedInAnnotation="YES"), tmp_path/"d.dcm", "s").burned_in == "YES"


def test_mistakes_are_refused(tmp_path):
    path = dicom_files.write(tmp_path/"a.dcm", PIXELS, 12)
    with pytest.raises(ValueError, match="secret"): deidentify_file(path, tmp_path/"b.dcm", "")
    with pytest.raises(ValueError, match="is the original"): deidentify_file(path, path, "s")
    (tmp_path/"x.dcm").write_text("x")
    with pytest.raises(UnreadableImage, match="no DICOM"): deidentify_file(tmp_path/"x.dcm", tmp_path/"y.dcm", "s")
