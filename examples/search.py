"""Search a running server: python examples/search.py "How do I learn Python?" [HOST:PORT]."""

import sys

from cognate import Client
from cognate.errors import CognateError


def main(query: str, target: str = "localhost:50051") -> None:
    """Print the hits, best first."""
    with Client(target) as client:
        for hit in client.search(query, top_k=5):
            print(f"{hit.score:.3f}  {hit.text}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except CognateError as error:
        sys.exit(f"error: {error}")
