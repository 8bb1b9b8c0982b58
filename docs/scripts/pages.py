"""What MkDocs has to be told of pages that stand elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """SECURITY.md stands where hosts of repositories look for it."""
    if page.file.src_uri != "security.md":
        return markdown
    return (ROOT / "SECURITY.md").read_text(encoding="utf-8").replace("](docs/", "](")
