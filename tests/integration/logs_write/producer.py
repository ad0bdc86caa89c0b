"""A process that logs: ``producer NAME COUNT [PAUSE [SIZE]]``; prints its stats as JSON at the end.

Record i has run_id NAME, message "i" and details of SIZE more bytes. PAUSE: seconds after each
hundred records. ``grown``: bytes by which its peak of memory grew after the first tenth.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict

from cloche import ExecutionLogger
from tests.integration.logs_write.project import app


def peak() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(name: str, count: int, pause: float, size: int) -> None:
    log = ExecutionLogger(app)
    before = 0
    for number in range(count):
        if number == count // 10:
            before = peak()
        details = {"number": number, "padding": f"{number:0{size}}" if size else ""}
        log.info("test", "produce", str(number), run_id=name, details=details)
        if pause and number % 100 == 99:
            time.sleep(pause)
    log.close()
    print(json.dumps({**asdict(log.stats()), "grown": peak() - before}))


if __name__ == "__main__":
    name, count, pause, size = [*sys.argv[1:], "0", "0"][:4]
    main(name, int(count), float(pause), int(size))
