"""How texts are put together into batches for the model."""

from collections.abc import Sequence


def padded_length(length: int, *, multiple: int, most_padding: int) -> int:
    """How long a text is made for a device that is quicker with some lengths than with those before them.

    Args:
        length: Tokens of the text.
        multiple: Lengths that are quick.
        most_padding: Tokens that may be added to reach one; where more are missing, none is.
    """
    padding = -length % multiple
    return length + padding if padding <= most_padding else length


def batches_by_length(
    lengths: Sequence[int], *, max_batch_tokens: int, max_batch_texts: int
) -> list[list[int]]:
    """Put texts of like lengths together, so that little of a batch is padding.

    A batch costs (texts x its longest text) tokens, padding included.

    Args:
        lengths: Tokens of each text.
        max_batch_tokens: What a batch may cost; a single longer text is a batch of its own.
        max_batch_texts: How many texts a batch may have, at least 1.

    Returns:
        Positions in ``lengths``, each once, longest texts first, so that the largest memory is taken
        at once and a batch that is too large fails early.
    """
    batches: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        full = (
            not batches
            or len(batches[-1]) == max_batch_texts
            or (len(batches[-1]) + 1) * longest > max_batch_tokens
        )
        if full:
            batches.append([])
            longest = max(lengths[position], 1)
        batches[-1].append(position)
    return batches
