"""How much of something may be taken, by the second and at once."""

from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """A token bucket: it fills at a rate, and holds so many at most.

    What is more than it holds can be taken when it is full, and leaves a debt: so nothing is refused for
    ever, and the rate holds over time whatever the sizes.

    Attributes:
        rate: What flows in, by the second, more than 0.
        size: What it holds at most, at least 1.
    """

    rate: float
    size: float
    _level: float = 0.0
    _at: float = float("-inf")

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much can be taken; 0 where it can be now.

        Args:
            amount: How much, 0 or more.
            now: By ``time.monotonic``; never earlier than before.
        """
        self._fill(now)
        return max(0.0, (min(amount, self.size) - self._level) / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Take so much, whether or not it is there."""
        self._fill(now)
        self._level -= amount

    def _fill(self, now: float) -> None:
        self._level = min(self.size, self._level + self.rate * (now - self._at))
        self._at = now
