"""``python -m trainer RUN``: go on with the run of that folder; what ``cognate train --detach`` starts."""

import signal
import sys
from pathlib import Path
from types import FrameType

from cognate.errors import CognateError


def main() -> None:
    """Run it; its state and its log say how it ended."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m trainer RUN, the folder of a run")
    signal.signal(signal.SIGTERM, _stop)
    from trainer.fine_tuning import resume

    folder = Path(sys.argv[1])
    try:
        resume(folder.name, runs_dir=folder.parent)
    except CognateError:
        raise SystemExit(1) from None  # The log has it.


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
