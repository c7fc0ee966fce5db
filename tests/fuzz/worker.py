"""Runs cases of one target, until something happens: ``python worker.py TARGET FOLDER SEED...``.

A line for each seed before its case, so that whoever started this knows which case it died of.
Memory is limited, and a case that takes longer than its time ends the process with a traceback.
"""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from harm import Harm
from targets import TARGETS

from edge_mdeq.errors import EdgeMdeqError

HANG_S = float(os.environ.get("EDGE_MDEQ_FUZZ_HANG_S", "10"))
MEMORY = 2**30  # bytes of address space beyond what is taken once all is loaded


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    seeds = [int(word) for word in sys.argv[3:] or sys.stdin.read().split()]
    say = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no report
    target = ({"harm": Harm} | TARGETS)[name](folder)
    target.prepare()
    limit_memory()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in seeds:
        os.write(say, f"{seed}\n".encode())
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        try:
            target.case(random.Random(f"{name} {seed}"))
            outcome = "taken"
        except EdgeMdeqError as error:
            outcome = "refused" if str(error) else "refused without a word"
        except BaseException:
            faulthandler.cancel_dump_traceback_later()
            traceback.print_exc()
            os.write(say, b"raised\n")
            sys.exit(3)
        faulthandler.cancel_dump_traceback_later()
        os.write(say, f"{outcome}\n".encode())
    target.finish()


if __name__ == "__main__":
    main()
