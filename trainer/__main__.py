"""``python -m trainer RUN``: go on with the run of that folder; what ``cognate train --detach`` starts.

``torchrun --nproc-per-node N -m trainer RUN`` does so in several processes, which share every batch.
"""

import os
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
    import torch

    from trainer.fine_tuning import join, resume

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    folder = Path(sys.argv[1])
    first = os.environ.get("RANK", "0") == "0"
    try:
        (resume if first else join)(folder.name, runs_dir=folder.parent)
    except CognateError as error:
        # The log has what the first process says.
        raise SystemExit(1 if first else f"process {os.environ['RANK']}: {error}") from None


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
