"""The line that is typed at the prompt: several lines until ``;``, history, completion, colours. `prompt_toolkit` does the work."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flowstate.command.completion import Words
from flowstate.command.statements import is_complete
from flowstate.errors import InvalidFlow

try:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.lexers import PygmentsLexer
    from prompt_toolkit.styles import Style
    from pygments.lexers.sql import SqlLexer
except ImportError as error:
    raise InvalidFlow("the prompt needs more packages; pip install 'flowstate[cli]', or give the query") from error

#: Of the terminal's own palette, so that it is read on light and on dark ground.
_STYLE = Style.from_dict(
    {
        "prompt": "bold",
        "pygments.keyword": "bold",
        "pygments.literal.string": "ansigreen",
        "pygments.literal.number": "ansimagenta",
        "pygments.comment": "italic ansigray",
        "pygments.name": "",
        "pygments.operator": "",
        "auto-suggestion": "ansigray",
    }
)


class Editor:
    """Reads what is typed, with `name` before it."""

    def __init__(self, name: str, words: Words) -> None:
        self._name = name
        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            completer=_Completer(words),
            complete_while_typing=False,
            auto_suggest=AutoSuggestFromHistory(),
            lexer=PygmentsLexer(SqlLexer),
            key_bindings=_keys(),
            style=_STYLE,
            include_default_pygments_style=False,
            multiline=True,
            prompt_continuation=lambda width, number, soft: " " * max(0, width - 3) + "-> ",
        )

    def read(self) -> str:
        """Statements with ``;``, or a command. Raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C, a key here: signals are left
        to who calls, so that none is lost while the terminal changes hands."""
        return self._session.prompt([("class:prompt", f"{self._name}> ")], handle_sigint=False)


class _Completer(Completer):
    def __init__(self, words: Words) -> None:
        self._words = words

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        for each in self._words.after(document.text_before_cursor, document.text):
            yield Completion(each.text, -each.length, display_meta=each.about)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer: Any = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None  # a completion is taken, and nothing is run yet
        elif is_complete(buffer.text) and not buffer.document.text_after_cursor.strip():
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    return keys


def _history() -> History:
    """In the user's state folder, for nobody else to read; else it ends with the process."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = (Path(state) if os.path.isabs(state) else Path("~/.local/state").expanduser()) / "flowstate"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = folder / "sql_history"
        file.touch(mode=0o600, exist_ok=True)
        if os.access(file, os.R_OK | os.W_OK):
            return FileHistory(str(file))
    except (OSError, RuntimeError):
        pass
    return InMemoryHistory()
