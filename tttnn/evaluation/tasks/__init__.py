"""Tasks for lm-evaluation-harness that read local files and need no hub; it finds them as ``--include_path``."""
