import shutil

import pytest

from tests.model.checkpoints import TIED


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the tied checkpoint whose tensors a test may edit."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(TIED, folder)
    return folder
