"""For every test, before any of them imports torch."""

import os

# Several test processes share the cores: threads that wait for work leave theirs to others instead of spinning on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
