"""A process that logs: ``producer NAME COUNT [PAUSE]``; prints its stats as JSON at the end.

Record i has run_id NAME and message "i". PAUSE: seconds after each hundred records.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict

from cloche import ExecutionLogger
from tests.integration.logs_write.project import app


def main(name: str, count: int, pause: float) -> None:
    log = ExecutionLogger(app)
    for number in range(count):
        log.info("test", "produce", str(number), run_id=name, details={"number": number})
        if pause and number % 100 == 99:
            time.sleep(pause)
    log.close()
    print(json.dumps(asdict(log.stats())))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
