"""How commands and their outputs are found in a page and compared."""

from __future__ import annotations

from tests.docs.console import Typed, typed, unseen

PAGE = """\
text
```console
$ first --option
one
two
$ second
```
```
$ not this
```
1. indented
   ```console
   $ third
     three
   ```
"""


def test_commands_and_what_they_print() -> None:
    assert typed(PAGE) == [
        Typed("first --option", ["one", "two"]),
        Typed("second"),
        Typed("third", ["  three"]),
    ]


def test_expected_lines_stand_in_their_order() -> None:
    assert unseen(["a…c", "d"], "x\nabbc  \ny\nd\n") is None
    assert unseen(["d", "a…c"], "abbc\nd\n") == "a…c"
    assert unseen(["a.c"], "abc\n") == "a.c"
    assert unseen(["a"], "") == "a"
