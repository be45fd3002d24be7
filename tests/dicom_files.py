"DICOM files made here, with a person in them"
import warnings

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

NAME, PERSON, UID = "Quxley^Zebulon", "MRN-774411", "1.2.3.4.5.6774411"
SECRETS = ("Quxley", "Zebulon", PERSON, UID, "6774411")


def dataset(pixels, bits=16, **tags):
    "A film of one frame; `tags` win over everything"
    ds = Dataset()
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = NAME, PERSON, "19500101"
    ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, UID, UID + ".1"
    inner = Dataset()
    inner.ReferencedSOPInstanceUID, inner.PatientID, inner.PatientName = UID, PERSON, NAME
    ds.ReferencedImageSequence = [inner]
    ds.add_new(0x00091001, "LO", f"private {NAME}")
    ds.Rows, ds.Columns = pixels.shape[-2:] if pixels.ndim == 3 else pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8*pixels.dtype.itemsize, bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = np.ascontiguousarray(pixels).tobytes()
    for name,value in tags.items(): setattr(ds, name, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, UID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.SourceApplicationEntityTitle = "Quxley"
    return ds


def write(path, pixels, bits=16, **tags):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset(pixels, bits, **tags).save_as(path, enforce_file_format=True)
    return path


def compress(path, new, syntax):
    "The same film in another transfer syntax, by GDCM"
    import gdcm
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(new))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return new


def lut(entries, first, depth):
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, depth], np.asarray(entries, np.uint16).tobytes()
    return item
