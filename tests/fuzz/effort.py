"""How much to fuzz. Every test of this folder takes some seconds, so that all of them fit into a run of CI; `make fuzz`
does twenty times as much, `make fuzz EFFORT=500` as much as you like. Examples are counted, not seconds, and seeded:
the same effort asks the same, on any machine.
"""

import os

EFFORT = int(os.environ.get("SHELFWISE_FUZZ", "1"))
