"""The texts that wait for the model, and which of them go next. No threads of its own, and no I/O."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Priority = Literal["interactive", "bulk"]

WINDOW_BATCHES = 4
"""How many full batches of waiting texts are looked at for the next one; bounds the time of a look."""

BULK_TURN = 8
"""Where both priorities wait, bulk has one batch in so many."""


class QueueFullError(Exception):
    """There is no room for a call."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose a call is.

    Attributes:
        tenant: Tenants take turns; those who do not say are one.
        priority: "bulk" gives way.
    """

    tenant: str = ""
    priority: Priority = "interactive"


ANYONE = Caller()


@dataclass(eq=False, slots=True)
class Call:
    """A call's texts in the queue.

    Attributes:
        deadline: When its answer is of no more use, by ``time.monotonic``.
        caller: Whose it is.
        bounded: Whether its tokens count against the bound.
        tokens: How many of its tokens count as waiting.
        texts: The token ids of each text.
        waiting: Positions of the texts that wait, longest first.
    """

    deadline: float
    caller: Caller
    bounded: bool
    tokens: int = 0
    texts: Sequence[Sequence[int]] = ()
    waiting: list[int] = field(default_factory=list)


Share = tuple[Call, list[int]]
"""A call's part in a batch: which of its texts."""


class _Lane:
    """The calls of one priority.

    Attributes:
        turns: The calls whose texts wait, by tenant; both in the order of their turns.
        tokens: That wait, by tenant; never 0.
        bounded: Those of them that count against the bound; never 0.
        large: Calls of more tokens than a batch.
    """

    def __init__(self) -> None:
        self.turns: OrderedDict[str, OrderedDict[Call, None]] = OrderedDict()
        self.tokens: dict[str, int] = {}
        self.bounded: dict[str, int] = {}
        self.large: dict[Call, None] = {}


class TextQueue:
    """Texts of many calls, bounded by their tokens. Safe to use from several threads.

    A batch is of one priority: interactive before bulk, but that bulk has one batch in BULK_TURN. Within a
    priority tenants take turns: the one at the head has waited longest since it came or last was at the
    head, and always has a part in the next batch. So do the calls of a tenant. So neither a large call nor
    many of them hold up anybody else.
    """

    def __init__(
        self,
        *,
        max_queue_tokens: int,
        max_batch_tokens: int,
        max_batch_texts: int,
        run_tokens: int,
        padded_length: Callable[[int], int],
        padding_cost: float = 1,
    ) -> None:
        """Make an empty queue.

        Args:
            max_queue_tokens: Tokens waiting, of a priority, over which calls are refused.
            max_batch_tokens: As in ``choose_batch``.
            max_batch_texts: As in ``choose_batch``.
            run_tokens: As in ``choose_batch``.
            padded_length: Gives the length that a text of so many tokens is run with at least.
            padding_cost: What a token of padding costs, counted in tokens; where it is less than 1, texts
                need not be of like length to go together.
        """
        self.max_queue_tokens = max_queue_tokens
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_texts = max_batch_texts
        self._run_tokens = run_tokens
        self._padded_length = padded_length
        self._padding_cost = padding_cost
        self._tokens = 0
        self._lanes: dict[Priority, _Lane] = {"interactive": _Lane(), "bulk": _Lane()}
        # Batches since bulk had one, or since none of it waited.
        self._bulk_waited = 0
        self._lock = threading.Lock()

    @property
    def tokens(self) -> int:
        """Tokens that wait, those of calls being tokenised included."""
        return self._tokens

    @property
    def empty(self) -> bool:
        """Whether no text waits."""
        return not any(lane.turns for lane in self._lanes.values())

    def admit(self, tokens: int, deadline: float, caller: Caller = ANYONE, *, bounded: bool = True) -> Call:
        """Let a call in, before its texts are known.

        Args:
            tokens: About how many it will have.
            deadline: When its answer is of no more use, by ``time.monotonic``.
            caller: Whose it is.
            bounded: False for one that is bounded elsewhere; it is let in, and takes no room from others.

        Raises:
            QueueFullError: There is no room for so many.
        """
        call = Call(deadline, caller, bounded)
        with self._lock:
            if bounded and not self._has_room(tokens, caller):
                raise QueueFullError
            self._count(call, tokens)
        return call

    def put(self, call: Call, texts: Sequence[Sequence[int]]) -> None:
        """Give an admitted call its texts, at the end of the queue.

        Args:
            call: As ``admit`` gave it.
            texts: The token ids of each text, at least one text.
        """
        call.texts = texts
        call.waiting = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
        with self._lock:
            self._count(call, sum(map(len, texts)) - call.tokens)
            turns = self._lanes[call.caller.priority].turns
            turns.setdefault(call.caller.tenant, OrderedDict())[call] = None

    def discard(self, call: Call) -> None:
        """Drop whatever of a call still waits."""
        with self._lock:
            self._discard(call)

    def ahead(self, tokens: int, caller: Caller = ANYONE) -> int:
        """Tokens to encode until all of a call that came now would be, its own included.

        By the turns that calls take: of another, as many go before as of this one, or a batch; likewise of
        another tenant. What comes later is not known, and not counted.

        Args:
            tokens: Of the call.
            caller: Whose it is.
        """
        with self._lock:
            lane = self._lanes[caller.priority]
            turn = max(tokens, self.max_batch_tokens)
            # Not call by call: who has much to refuse has many that wait.
            own = tokens + lane.tokens.get(caller.tenant, 0)
            for call in lane.large:
                if call.caller.tenant == caller.tenant:
                    own -= max(0, call.tokens - turn)
            turn = max(own, self.max_batch_tokens)
            others = (waiting for tenant, waiting in lane.tokens.items() if tenant != caller.tenant)
            first = sum(self._lanes["interactive"].tokens.values()) if caller.priority == "bulk" else 0
            return own + sum(min(waiting, turn) for waiting in others) + first

    def take(self, now: float) -> tuple[list[Share], list[Call]]:
        """Take the next batch out.

        Args:
            now: By ``time.monotonic``.

        Returns:
            The batch, empty where nothing waits, and the calls that were dropped because their deadline
            has passed.
        """
        with self._lock:
            dropped: list[Call] = []
            for priority in self._order():
                lane = self._lanes[priority]
                candidates, expired = self._candidates(lane, now)
                dropped += expired
                for call in expired:
                    self._discard(call)
                if candidates:
                    break
            else:
                return [], dropped
            if priority == "bulk" or not self._lanes["bulk"].turns:
                self._bulk_waited = 0
            else:
                self._bulk_waited += 1
            lengths = [self._padded_length(len(call.texts[position])) for call, position in candidates]
            bounds = {"max_batch_tokens": self.max_batch_tokens, "max_batch_texts": self.max_batch_texts}
            chosen = (
                choose_batch(lengths, run_tokens=self._run_tokens, **bounds)
                if self._padding_cost == 1
                else choose_in_turn(lengths, padding_cost=self._padding_cost, **bounds)
            )
            # Others may have a part too, by their length; they keep their place.
            lane.turns.move_to_end(candidates[0][0].caller.tenant)
            shares = itertools.groupby((candidates[index] for index in chosen), key=lambda pair: pair[0])
            batch = [(call, [position for _, position in pairs]) for call, pairs in shares]
            for call, positions in batch:
                self._take(call, positions)
            return batch, dropped

    def _order(self) -> Iterable[Priority]:
        return ("bulk", "interactive") if self._bulk_waited >= BULK_TURN - 1 else ("interactive", "bulk")

    def _candidates(self, lane: _Lane, now: float) -> tuple[list[tuple[Call, int]], list[Call]]:
        """The texts to look at, in the order of their turns, as many of each tenant; and expired calls."""
        candidates: list[tuple[Call, int]] = []
        expired: list[Call] = []
        # In the order of a tenant's turns, more than a batch's texts could not go together. Of several, each
        # has a share of the window, and those with few leave room to the others.
        batches = 1 if self._padding_cost < 1 and len(lane.turns) == 1 else WINDOW_BATCHES
        window = batches * self.max_batch_texts
        share = max(1, window // max(1, len(lane.turns)))
        for calls in lane.turns.values():
            room = min(share, window - len(candidates))
            for call in calls:
                if room <= 0:
                    break
                if call.deadline <= now:
                    expired.append(call)
                    continue
                some = call.waiting[: min(room, self.max_batch_texts)]
                candidates.extend((call, position) for position in some)
                room -= len(some)
        return candidates, expired

    def _has_room(self, tokens: int, caller: Caller) -> bool:
        """Whether a call is let in.

        An empty queue takes any call, so that one that is larger than the bound is not refused for ever. And
        where others have filled it, there is still room for a tenant's fair share of it, up to twice the
        bound in all.
        """
        bounded = self._lanes[caller.priority].bounded
        waiting = sum(bounded.values())
        if not waiting or waiting + tokens <= self.max_queue_tokens:
            return True
        own = bounded.get(caller.tenant, 0)
        tenants = len(bounded) + (not own)
        return (
            tokens + own <= self.max_queue_tokens // tenants and waiting + tokens <= 2 * self.max_queue_tokens
        )

    def _count(self, call: Call, tokens: int) -> None:
        """Count so many more of a call's tokens as waiting."""
        call.tokens += tokens
        self._tokens += tokens
        lane = self._lanes[call.caller.priority]
        _add(lane.tokens, call.caller.tenant, tokens)
        if call.bounded:
            _add(lane.bounded, call.caller.tenant, tokens)
        if call.tokens > self.max_batch_tokens:
            lane.large[call] = None
        else:
            lane.large.pop(call, None)

    def _take(self, call: Call, positions: list[int]) -> None:
        self._count(call, -sum(len(call.texts[position]) for position in positions))
        taken = set(positions)
        head = call.waiting[: self.max_batch_texts]
        call.waiting[: len(head)] = [position for position in head if position not in taken]
        if call.waiting:
            self._lanes[call.caller.priority].turns[call.caller.tenant].move_to_end(call)
        else:
            self._remove(call)

    def _discard(self, call: Call) -> None:
        self._count(call, -call.tokens)
        self._remove(call)

    def _remove(self, call: Call) -> None:
        turns = self._lanes[call.caller.priority].turns
        calls = turns.get(call.caller.tenant)
        if calls is not None:
            calls.pop(call, None)
            if not calls:
                del turns[call.caller.tenant]


def _add(counts: dict[str, int], name: str, more: int) -> None:
    """Count more of a name, or fewer; a name with none is not kept."""
    count = counts.get(name, 0) + more
    if count:
        counts[name] = count
    else:
        counts.pop(name, None)


def choose_batch(
    lengths: Sequence[int], *, max_batch_tokens: int, max_batch_texts: int, run_tokens: int
) -> list[int]:
    """Choose the texts of the next batch: the first one, and those of like length that fit.

    A batch costs (texts x its longest text) tokens, padding included. A text joins where the padding
    that it adds costs less than a run of its own.

    Args:
        lengths: Tokens of each waiting text, in the order of their turns.
        max_batch_tokens: What a batch may cost; a single longer text is a batch of its own.
        max_batch_texts: How many texts a batch may have, at least 1.
        run_tokens: What a run of the model costs beside its tokens, counted in tokens.

    Returns:
        Positions in ``lengths``, ascending, 0 always among them; none where there are no texts.
    """
    if not lengths:
        return []
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    # The batch is by_length[low:high]; it grows at the end where that adds less padding.
    low = by_length.index(0)
    high = low + 1
    longest = lengths[0]
    while (size := high - low) < max_batch_texts:
        shorter = longest - lengths[by_length[low - 1]] if low else None
        longer = size * (lengths[by_length[high]] - longest) if high < len(by_length) else None
        if longer is not None and (
            longer > run_tokens or (size + 1) * lengths[by_length[high]] > max_batch_tokens
        ):
            longer = None
        if shorter is not None and (shorter > run_tokens or (size + 1) * longest > max_batch_tokens):
            shorter = None
        if longer is not None and (shorter is None or longer <= shorter):
            longest = lengths[by_length[high]]
            high += 1
        elif shorter is not None:
            low -= 1
        else:
            break
    return sorted(by_length[low:high])


def choose_in_turn(
    lengths: Sequence[int], *, max_batch_tokens: int, max_batch_texts: int, padding_cost: float
) -> list[int]:
    """Choose the texts of the next batch where padding costs little: the first, and those after it that fit.

    Args:
        lengths: Tokens of each waiting text, in the order of their turns.
        max_batch_tokens: What a batch may cost; a single longer text is a batch of its own.
        max_batch_texts: How many texts a batch may have, at least 1.
        padding_cost: What a token of padding costs, counted in tokens.

    Returns:
        Positions in ``lengths``, ascending, 0 always among them; none where there are no texts.
    """
    chosen: list[int] = []
    tokens = longest = 0
    for position, length in enumerate(lengths):
        all_tokens, new_longest = tokens + length, max(longest, length)
        padding = (len(chosen) + 1) * new_longest - all_tokens
        if not chosen or all_tokens + padding_cost * padding <= max_batch_tokens:
            chosen.append(position)
            tokens, longest = all_tokens, new_longest
            if len(chosen) == max_batch_texts:
                break
    return chosen
