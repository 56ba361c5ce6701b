"""``python -m cognate``."""

from cognate.cli import main

if __name__ == "__main__":
    main()
