"""Opens an address with a secret in it in the user's browser.

The address is in no process's arguments, which every user of the machine can read (proc_pid_cmdline(5)): the
browser is given a file that only the user can read, and the page in it goes on to the address.
"""

import html
import os
import tempfile
import webbrowser
from pathlib import Path

_PREFIX, _SUFFIX = "ostler-open-", ".html"
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}">
<title>Ostler</title>
<p><a href="{url}">Open the dashboard</a></p>
</html>
"""


def open_in_browser(url: str) -> None:
    """Open `url` in the browser that the `webbrowser` module finds.

    The file stays: a browser may read it at any time. The next call removes it.

    Raises:
        OSError: no file can be made.
    """
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    _remove_old(folder)
    fd, name = tempfile.mkstemp(_SUFFIX, _PREFIX, folder)  # mode 0600
    with os.fdopen(fd, "w") as file:
        file.write(_PAGE.format(url=html.escape(url)))
    webbrowser.open(Path(name).as_uri())


def _remove_old(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        try:
            if path.lstat().st_uid == os.geteuid():
                path.unlink()
        except OSError:
            pass  # another call has removed it
