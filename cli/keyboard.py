"""Read single key presses, for a verb that draws on a terminal. Linux, macOS, and Windows."""

from __future__ import annotations

import os
import sys
import time
from typing import Self

KEY_BYTES_MAX = 64
LOOK_S = 0.05  # how often Windows, which cannot wait for a key and a time at once, is asked


class Keyboard:
    """A context manager: inside, keys need no Enter and are not echoed. Ctrl-C works as usual. If stdin is
    not a terminal, no key is ever reported."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdin is not None and sys.stdin.isatty()

    if sys.platform == "win32":
        import msvcrt

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def pressed(self, within_s: float) -> str:
            give_up_s = time.monotonic() + within_s
            while (left_s := give_up_s - time.monotonic()) > 0:
                if self._is_terminal and self.msvcrt.kbhit():
                    return self.msvcrt.getwch()
                time.sleep(min(LOOK_S, left_s))
            return ""

    else:

        def __enter__(self) -> Self:
            if self._is_terminal:
                import termios
                import tty

                self._before = termios.tcgetattr(sys.stdin)
                tty.setcbreak(sys.stdin)
            return self

        def __exit__(self, *_: object) -> None:
            if self._is_terminal:
                import termios

                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

        def pressed(self, within_s: float) -> str:
            """The next key, or "" when none was pressed within that time. An arrow is several
            characters, of which the first is Escape."""
            import select

            if not self._is_terminal:
                time.sleep(within_s)
                return ""
            if not select.select([sys.stdin], [], [], within_s)[0]:
                return ""
            keys = os.read(sys.stdin.fileno(), KEY_BYTES_MAX)
            if not keys:  # the terminal has gone
                self._is_terminal = False
            return keys.decode(errors="replace")
