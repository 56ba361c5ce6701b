"""Updates an index in processes that are killed at random moments, and checks it after each.

``python tests/updates_killed.py INDEX KILLS`` prints the kills, the batches that were acknowledged, and the
compactions that they came in between.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from cognate.records import Record
from cognate.updates import IndexUpdates, open_index, state_of

IDS = 60


def batch(number: int) -> tuple[list[Record], "np.ndarray[tuple[int, int], np.dtype[np.float32]]", list[str]]:
    """What batch of that number writes, and deletes before: the same in every process."""
    chance = random.Random(number)
    ids = chance.sample(range(IDS), 6)
    vectors = np.random.default_rng(number).standard_normal((3, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (
        [Record(f"{number} {name}", None, f"id-{name}") for name in ids[:3]],
        vectors,
        [f"id-{name}" for name in ids[3:]],
    )


def update(folder: Path, told: int) -> None:
    """Apply batch after batch, tell each once it is acknowledged, and compact now and then; for ever."""
    updates = IndexUpdates(folder)
    while True:
        number = updates.index.state.revision
        records, vectors, deletes = batch(number)
        applied = updates.apply(records, vectors, deletes)
        os.write(told, b"%d\n" % applied.revision)
        if number % 4 == 0:
            updates.compact()


def main(folder: Path, kills: int) -> None:
    """Kill it so often, and check after each time."""
    chance = random.Random(1)
    model = {f"id-{row}": f"text {row}" for row in range(open_index(folder).count)}
    revision = 0
    bases = set()
    for _ in range(kills):
        reading, told = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            try:
                update(folder, told)
            finally:
                os._exit(3)
        os.close(told)
        with os.fdopen(reading) as lines:
            # Some while they open the index, most while they write or compact.
            acknowledged = [int(lines.readline()) for _ in range(chance.randrange(7))]
            time.sleep(chance.random() * 0.02)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), "it ended by itself"
            acknowledged += [int(line) for line in lines]
        index = open_index(folder)
        state = state_of(folder)
        bases.add(state.base)
        assert state.revision >= max(acknowledged, default=revision), "an acknowledged batch is lost"
        assert state.revision <= max(acknowledged, default=revision) + 1, "there is one that never was"
        for number in range(revision, state.revision):
            records, _, deletes = batch(number)
            for name in deletes:
                model.pop(name, None)
            model.update((record.id or "", record.text) for record in records)
        revision = state.revision
        (hits,) = index.search(np.full((1, 32), 32**-0.5, np.float32), 1000)
        found = [(hit.id, hit.text) for hit in hits]
        assert len(found) == len(model), f"{len(found)} records where there are {len(model)}"
        assert dict(found) == model
        index.close()
    print(kills, revision, len(bases))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
