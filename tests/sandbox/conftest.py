import pytest

from sdpo_jax.sandbox.pool import Sandbox
from tests.sandbox.boxes import LIMITS, call, is_installed


# B is A without its control groups: `make test-slow` runs it.
@pytest.fixture(
    scope="module",
    params=["A", pytest.param("B", marks=pytest.mark.slow), "C"],
)
def tier(request):
    if not is_installed(request.param):
        pytest.skip(f"tier {request.param}: no bubblewrap, or no control groups, here")
    return request.param


@pytest.fixture(scope="module")
def sandbox_of_module(tier):
    with Sandbox(LIMITS, tier, workers=2) as box:
        assert box.tier == tier
        yield box


@pytest.fixture
def sandbox(sandbox_of_module):
    """The shared sandbox; after each test, an honest program must still run in it."""
    yield sandbox_of_module
    assert call(sandbox_of_module, "def f(x):\n    return x + 1", 1).result == 2


@pytest.fixture
def lone(tier):
    """A sandbox of one worker, which runs one program after another."""
    with Sandbox(LIMITS, tier, workers=1) as box:
        yield box
