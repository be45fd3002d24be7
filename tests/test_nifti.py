"Films of NIfTI files: turned by the affine, whole numbers whole, and equal to the DICOM of the same exam"
import dicom_files
import nibabel
import numpy as np
import pytest

from vitnb.data.film import read_film
from vitnb.data.image import UnreadableImage
from vitnb.data.nifti import film_axes, read_nifti, read_nifti_labels, save_nifti, turn_nifti


def save(path, array, affine, **kw):
    nibabel.save(nibabel.Nifti1Image(array, affine, **kw), path)
    return path


@pytest.mark.parametrize("signs,place", [((-1, -1), (5, 3)), ((1, 1), (0, 0)), ((1, -1), (5, 0)), ((-1, 1), (0, 3))])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)])
def test_a_mark_lands_where_the_affine_says(tmp_path, signs, place, shape):
    array = np.zeros(shape, np.int16)
    array[3,5] = 1
    image = read_nifti(save(tmp_path/"a.nii", array, np.diag([*signs, 1, 1]))).values
    assert image.shape == (6, 4) and np.argwhere(image).tolist() == [list(place)]


def test_a_film_stored_rows_first_and_one_in_the_coronal_plane_are_upright_too(tmp_path):
    seen = np.arange(24, dtype=np.int16).reshape(6,4)
    affine = np.zeros((4,4))
    affine[0,1], affine[1,0], affine[2,2], affine[3,3] = -1, -1, 1, 1 # first axis to the back, second to the left
    assert (read_nifti(save(tmp_path/"rows.nii", seen[...,None], affine)).values == seen).all()
    coronal = np.zeros((4,4))
    coronal[0,0], coronal[1,1], coronal[2,2], coronal[3,3] = -1, 1, -1, 1 # columns to the left, slices, rows to the feet
    assert (read_nifti(save(tmp_path/"coronal.nii", seen.T[:,None], coronal)).values == seen).all()


def test_dicom_and_nifti_of_one_exam_are_equal(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (40,30)).astype(np.uint16)
    path = dicom_files.write(tmp_path/"a.dcm", pixels[:,::-1], 12, PatientOrientation=["R", "F"])
    save(tmp_path/"a.nii.gz", pixels.T[:,::-1], np.diag([-1, 1, 1, 1]))
    assert (read_film(path) == read_film(tmp_path/"a.nii.gz")).all()


def test_an_oblique_or_missing_orientation_keeps_the_stored_order_and_warns(tmp_path):
    c = np.sqrt(.5)
    turned = np.array([[c, -c, 0, 0], [c, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.]])
    array = np.arange(24, dtype=np.int16).reshape(4,6)
    with pytest.warns(UserWarning, match="oblique"): one = read_nifti(save(tmp_path/"a.nii", array, turned))
    with pytest.warns(UserWarning, match="oblique"): two = read_nifti(save(tmp_path/"b.nii", array, turned))
    assert (one.values == array.T).all() and two.values.shape == one.values.shape and "stored order" in one.notes[0]
    image = nibabel.Nifti1Image(array, None)
    nibabel.save(image, tmp_path/"c.nii")
    with pytest.warns(UserWarning, match="not given"): assert (read_nifti(tmp_path/"c.nii").values == array.T).all()
    assert film_axes(np.diag([1, 1, 1, 1])) is not None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32])
def test_whole_numbers_come_back_exactly(tmp_path, dtype):
    a = np.random.default_rng(0).integers(0, min(np.iinfo(dtype).max, 60000), (8,6)).astype(dtype)
    a[0,0] = 3
    back = read_nifti(save_nifti(tmp_path/"a.nii.gz", a)).values
    assert (back == a).all() and back.dtype == dtype and back[0,0] == 3


def test_labels_that_went_through_a_scale_are_rounded_and_fractions_refused(tmp_path):
    image = nibabel.Nifti1Image(np.linspace(0, 3, 4).reshape(2,2), np.diag([-1, -1, 1, 1]))
    image.set_data_dtype(np.uint8)
    nibabel.save(image, tmp_path/"a.nii")
    assert read_nifti_labels(tmp_path/"a.nii").tolist() == [[0, 2], [1, 3]]
    with pytest.raises(UnreadableImage, match="fractions"): read_nifti_labels(save(tmp_path/"b.nii", np.full((2,2), .5, np.float32), np.eye(4)))


def test_volumes_and_lateral_films_and_broken_files_are_refused(tmp_path):
    with pytest.raises(UnreadableImage, match="4 × 6 × 3"): read_nifti(save(tmp_path/"v.nii", np.zeros((4,6,3), np.int16), np.eye(4)))
    with pytest.raises(ValueError, match="side to side"): turn_nifti(np.zeros((4,6)), [(1, True), (2, False)])
    lateral = np.eye(4)[[2,0,1,3]]
    with pytest.raises(UnreadableImage, match="side to side"): read_nifti(save(tmp_path/"l.nii", np.zeros((4,6), np.int16), lateral))
    (tmp_path/"x.nii").write_bytes(b"nothing")
    with pytest.raises(UnreadableImage): read_nifti(tmp_path/"x.nii")
    with pytest.raises(UnreadableImage, match="not finite"): read_nifti(save(tmp_path/"n.nii", np.full((4,6), np.nan, np.float32), np.eye(4)))
