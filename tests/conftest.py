"""For every test, before any of them imports torch."""

import os

# Several test processes share the cores: threads that wait for work leave theirs to others instead of spinning on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Minutes each. Workers take tests in order, and each other's when they have none left: begun last, one of these would
# leave all other cores idle.
LONGEST = ("test_triton_interpreter", "test_triton_aot", "test_kernels_stay_inside_their_buffers", "test_kill")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))
