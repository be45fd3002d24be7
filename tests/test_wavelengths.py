"Wavelengths: their unit, and which list of a file they are"
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitnb.data.wavelengths import Listed, choose_wavelengths, counts_up, name_rank, out_of_order, parse_numbers, to_nm, unit_of

NM = np.linspace(400, 1000, 30)
SAID = dict(nm=lambda nm: nm, um=lambda nm: nm/1e3, angstrom=lambda nm: nm*10, m=lambda nm: nm/1e9)
SAID["cm-1"] = lambda nm: 1e7/nm
SAID["ghz"] = lambda nm: 2.99792458e8/nm # c/λ, in units of 1e9 a second


@pytest.mark.parametrize("unit", SAID)
@given(low=st.floats(300, 1000), high=st.floats(1001, 14000))
def test_a_unit_that_is_said_is_converted(unit, low, high):
    assert np.allclose(to_nm(SAID[unit](np.linspace(low, high, 9)), unit), np.linspace(low, high, 9))


@pytest.mark.parametrize("values,nm", [([.4, 1.], [400, 1000]), ([.9, 2.5], [900, 2500]), ([7.7, 12.3], [7700, 12300]), ([4e-7, 1e-6], [400, 1000]), ([380, 2500], [380, 2500])])
def test_a_range_that_fits_one_unit_says_it(values, nm): assert np.allclose(to_nm(values), nm)


@pytest.mark.parametrize("values,unit,says", [
    ([4000, 10000], None, "several or none.*wavelength_unit="), (np.linspace(4000, 900, 30), None, "several or none"), ([400, 1000], "um", "cameras see"), ([.4, 1], "nm", "cameras see"),
    ([0, 500], None, "above 0"), ([500, np.nan], None, "above 0"), ([-400, 500], None, "above 0"), (np.arange(1, 31), None, "count the bands"), ([60, 120], None, "several or none"),
    ([400, 500], "inch", "unknown wavelength_unit")])
def test_what_the_range_cannot_decide_is_asked(values, unit, says):
    with pytest.raises(ValueError, match=says): to_nm(values, unit)


@pytest.mark.parametrize("text,unit", [("Nanometers", "nm"), ("Micrometers", "um"), ("µm", "um"), ("\u03bcm", "um"), ("microns", "um"), ("Ångström", "angstrom"), ("Wavenumber", "cm-1"), ("cm^-1", "cm-1"),
    (b"nm", "nm"), ("Wavelength (nm)", "nm"), ("wavelength_um", "um"), ("Index", None), ("Unknown", None), ("", None), (3, None)])
def test_units_are_read_as_people_write_them(text, unit): assert unit_of(text) == unit


@pytest.mark.parametrize("name,usable", [("wavelength", 1), ("Wavelengths", 1), ("wl", 1), ("lambda", 1), ("bandCenters", 1), ("List_Cw_Swir", 1), ("center_wavelength", 1), ("wavelengths_nm", 1), ("wavelength_vnir", 1),
    ("fwhm", 0), ("wavelength_fwhm", 0), ("FWHM_wavelength", 0), ("good_wavelengths", 0), ("wavelengthFlags", 0), ("wavelength_units", 0), ("bands", 0), ("cube", 0), ("waveform", 0), ("wavelength_index", 0)])
def test_a_list_is_known_by_its_name(name, usable): assert (name_rank(name) is not None) == bool(usable)


def test_of_similar_names_the_clear_one_is_taken_and_the_others_are_told():
    found = [Listed("/c/wavelength_l2", NM + 3, rank=1), Listed("/c/wavelength", NM, rank=0), Listed("/c/wl", np.full(30, 5.)), Listed("/c/waves", NM[:7]), Listed("/c/lambda", np.arange(1, 31)), Listed("/c/wls", NM*np.nan)]
    chosen,ignored = choose_wavelengths(found, {30, 24, 20})
    assert chosen.where == "/c/wavelength" and np.array_equal(chosen.values, NM)
    said = "; ".join(ignored)
    assert "/c/waves (7 entries" in said and "/c/wl (all are the same)" in said and "/c/lambda (they count" in said and "/c/wls (not all" in said and "/c/wavelength_l2" in said


def test_two_lists_that_differ_are_asked_and_two_that_agree_are_one():
    with pytest.raises(ValueError, match="may both be the wavelengths.*wavelengths='a'"): choose_wavelengths([Listed("a", NM), Listed("b", NM + 1)], {30})
    assert choose_wavelengths([Listed("a", NM), Listed("b", NM.copy())], {30})[0].where == "a"
    assert choose_wavelengths([], {30}) == (None, [])


@pytest.mark.parametrize("text,values,unit", [("400\n410\n", [400, 410], None), ("400 410 420", [400, 410, 420], None), ("{0.4, 0.5}", [.4, .5], None), ("# nm\n400\n500\n", [400, 500], None),
    ("band,wavelength,fwhm\n1,400,5\n2,410,5\n", [400, 410], None), ("Band;Wavelength (nm)\n1;400,5\n2;410,5\n", [400.5, 410.5], "nm"), ("1\t0.4\n2\t0.5\n3\t0.6\n", [.4, .5, .6], None), ("400,410,\n420,430,\n", [400, 410, 420, 430], None),
    ("wavelength\n4e2\n5e2\n", [400, 500], None), ("400\r\n500\r\n", [400, 500], None)])
def test_files_of_numbers(text, values, unit):
    listed = parse_numbers(text)
    if text.startswith("400,410"): assert len(listed.values) in (2, 4) # columns, or a list over several lines
    else: assert np.allclose(listed.values, values) and listed.unit == unit


def test_text_is_no_list():
    for text in ("", "four\nfive\n", "400\nfive\n"):
        with pytest.raises(ValueError, match="no list of numbers"): parse_numbers(text)


def test_numbers_of_bands_are_told_from_wavelengths(): assert counts_up(np.arange(30)) and counts_up(np.arange(1, 31)) and not counts_up(NM) and not counts_up(np.array([1.]))


@pytest.mark.parametrize("change,says", [(lambda nm: nm, None), (lambda nm: nm[::-1], None), (lambda nm: nm[:1], None), (lambda nm: nm[[0,1,3,2,4]], "bands 2 and 3 have wavelengths out of order"), (lambda nm: nm[[4,3,3,2,1]], "bands 1 and 2 have one wavelength")])
def test_bands_out_of_order_are_told(change, says):
    found = out_of_order(change(NM))
    assert [says in note for note in found] == [True]*bool(says)
