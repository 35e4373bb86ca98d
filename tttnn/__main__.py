"""``python -m tttnn`` is the command ``tttnn``."""

from .cli import main

main()
