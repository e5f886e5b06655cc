import pytest

from sdpo_jax.sandbox.pool import Sandbox
from tests.sandbox.boxes import LIMITS, call, is_installed

# Programs here mean no harm: `make test` runs them in the tier of every Linux.
HONEST = ("test_errors", "test_honest", "test_library", "test_scripts", "test_styles")


def is_honest(module):
    return module.__name__.rpartition(".")[2] in HONEST


def pytest_generate_tests(metafunc):
    if "tier" in metafunc.fixturenames:
        # B is A without its control groups.
        later = ("A", "B") if is_honest(metafunc.module) else ("B",)
        slow = lambda tier: [pytest.mark.slow] if tier in later else []
        tiers = [pytest.param(tier, marks=slow(tier)) for tier in "ABC"]
        metafunc.parametrize("tier", tiers, indirect=True, scope="module")


@pytest.fixture(scope="module")
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
def sandbox(sandbox_of_module, request):
    """After whatever a hostile program did, an honest one must still run."""
    yield sandbox_of_module
    if is_honest(request.module):
        return
    assert call(sandbox_of_module, "def f(x):\n    return x + 1", 1).result == 2


@pytest.fixture
def lone(tier):
    """A sandbox of one worker, which runs one program after another."""
    with Sandbox(LIMITS, tier, workers=1) as box:
        yield box
