import pytest
from drawn_pictures import make_folder


@pytest.fixture
def root(tmp_path):
    """A folder of pictures, see `make_folder`."""
    return make_folder(tmp_path / "pictures")
