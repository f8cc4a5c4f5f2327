"""Commands that are printed for the user to copy."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from fortifai_core.errors import without_secrets


def command_line(words: str, *, store: str | None = None, allow: Sequence[str] = ()) -> str:
    """`fortifai WORDS` as it is typed in a shell, for a store and with modules that may be imported.

    A store whose URL holds a password is not repeated: terminals, logs and recordings keep what is printed. What to
    set in its place is.
    """
    typed = f"fortifai {words}"
    secret = store is not None and without_secrets(store) != store
    if store and not secret:
        typed += f" --store {shlex.quote(store)}"
    typed += "".join(f" --allow-code {shlex.quote(module)}" for module in allow)
    return f"{typed} (with FORTIFAI_STORE set to the store's URL, whose password is not shown)" if secret else typed
