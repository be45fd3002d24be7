"Synthetic retinas obey their model"
import numpy as np
from cube_files import own_cache

from vitnb.data.cube import synthetic_retina, valid_pixels


def test_retinas_obey_beer_and_lambert():
    nm = np.arange(450, 851, 5.)
    r = synthetic_retina(12, size=48, noise=0., wavelengths=nm)
    inside = r.cubes[:,:,24,24] > 0
    assert inside.all() and np.isfinite(r.cubes).all() and (r.cubes >= 0).all() and (r.cubes <= 1.2).all()
    assert (r.cubes[:,:,0,0] == 0).all(), "outside the field nothing is measured"
    eye = r.cubes[0][:,valid_pixels(r.cubes[0], 1e-3)].mean(1)
    assert eye[nm == 700] > 3*eye[nm == 550], "blood and melanin absorb green"
    near = (nm > 530) & (nm < 590)
    local = -np.log(eye[near])
    assert local[0] > 0 and eye[nm == 560][0] > eye[nm == 540][0] and eye[nm == 560][0] > eye[nm == 575][0], "the two bands of oxygenated blood with a window between"


def test_a_retina_depends_on_its_number_and_seed_alone():
    a,b,c = synthetic_retina(4, size=16),synthetic_retina(2, size=16),synthetic_retina(2, size=16, seed=1)
    assert np.array_equal(a.cubes[:2], b.cubes) and not np.array_equal(b.cubes, c.cubes)
    assert (a.patients == [0,0,1,1]).all() and (synthetic_retina(12, size=8).labels == np.repeat(range(6), 2)).all()


def test_diseases_change_what_they_should():
    r = synthetic_retina(12, size=48, noise=0.)
    field = valid_pixels(r.cubes[0], 1e-3)
    mean = r.cubes[::2][:,:,field].mean(-1) # (disease, band)
    red,green = list(r.wavelengths).index(660.),list(r.wavelengths).index(560.)
    names = ["control","amd","atrophy","glaucoma","naevus","ischaemia"]
    assert all(np.abs(np.log(mean[i]/mean[0])).max() > .05 for i in range(1, 6)), names
    from vitnb.data.retina import _anatomy
    grid = np.stack(np.meshgrid(*2*[np.linspace(-1, 1, 32)]), -1)
    sick = _anatomy(np.random.default_rng(0), grid, "ischaemia")
    assert sick["artery"] < .85 and _anatomy(np.random.default_rng(0), grid, "naevus")["melanin"].max() > _anatomy(np.random.default_rng(0), grid, "control")["melanin"].max() + .3
    assert red != green
