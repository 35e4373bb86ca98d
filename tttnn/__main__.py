"""``python -m tttnn`` is the command ``tttnn``."""

from .cli.program import main

if __name__ == "__main__":  # a worker process imports this file under another name
    main()
