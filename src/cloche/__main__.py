"""``python -m cloche`` is ``cloche``."""

from cloche.cli import main

if __name__ == "__main__":
    main()
