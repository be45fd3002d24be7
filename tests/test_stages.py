"Stages: legal image sizes and tables of positions for another grid"
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hvit import images, seeded

from vitnb.models.stages import check_size, fitting_patch, near_sizes, resize_positions, size_step


@settings(max_examples=120, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), patch=st.integers(1, 16), stages=st.integers(1, 4))
def test_a_size_is_legal_or_the_error_names_the_nearest_that_are(height, width, patch, stages):
    step = patch*2**(stages - 1)
    assert size_step(patch, stages) == step
    if height % step == width % step == 0:
        assert check_size((height, width), patch, stages) == (height//patch, width//patch)
        return
    with pytest.raises(ValueError, match="is not legal") as e: check_size((height, width), patch, stages)
    for side in (height, width):
        legal = [k for k in range(step, side + 2*step, step) if abs(k - side) < step]
        assert near_sizes(side, step) == legal and all(str(k) in str(e.value) for k in legal)
        for k in legal: check_size((k, k), patch, stages)
    fits = [k for k in range(1, 17) if height % (k*2**(stages - 1)) == width % (k*2**(stages - 1)) == 0]
    assert fitting_patch((height, width), stages) == max(fits, default=None)
    assert ("patch_size=" in str(e.value)) == bool(fits)


def test_a_grid_of_as_many_tokens_but_another_form_gets_another_table():
    "128×512 has the 256 tokens of 256×256; the guide's code takes the table as it is and scrambles rows and columns"
    model,wide = seeded(img_size=32).eval(),seeded(img_size=(16, 64)).eval()
    wide.load_state_dict({**model.state_dict(), "pos_embed":resize_positions(model.pos_embed, (8, 32)).detach()})
    assert model.pos_embed[0,...,0].numel() == wide.pos_embed[0,...,0].numel()
    x = images(1, 3, 16, 64)
    with torch.no_grad():
        model(images(1, 3, 32, 32)) # a model that kept the grid of its last image would be misled
        assert torch.equal(model(x), wide(x))
        scrambled = {**model.state_dict(), "pos_embed":model.pos_embed.reshape(1, 8, 32, 8)}
        wide.load_state_dict(scrambled)
        assert not torch.allclose(model(x), wide(x), atol=1e-5)

@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 12), cols=st.integers(1, 12), new_rows=st.integers(1, 24), new_cols=st.integers(1, 24))
def test_resized_rows_stay_rows(rows, cols, new_rows, new_cols):
    "A table that depends on the row alone still does; a constant stays; the same grid is the same table"
    by_row = torch.arange(float(rows)).view(1, rows, 1, 1).expand(1, rows, cols, 3)
    out = resize_positions(by_row, (new_rows, new_cols))
    assert out.shape == (1, new_rows, new_cols, 3) and torch.allclose(out, out[:,:,:1].expand_as(out), atol=1e-4)
    assert torch.allclose(resize_positions(torch.ones(1, rows, cols, 2), (new_rows, new_cols)), torch.ones(1, new_rows, new_cols, 2), atol=1e-4)
    assert resize_positions(by_row, (rows, cols)) is by_row
