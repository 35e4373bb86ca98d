"""Types of the extension. Written by hand; stubtest compares it with the module."""

from typing import Any

def build_info() -> dict[str, Any]: ...
