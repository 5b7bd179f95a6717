"""A WebDAV share of the folder `files` beside it; open to every client."""

from pathlib import Path

from wsgidav.wsgidav_app import WsgiDAVApp

FILES = Path("files")
FILES.mkdir(exist_ok=True)

app = WsgiDAVApp(
    {
        "provider_mapping": {"/": str(FILES.resolve())},
        "simple_dc": {"user_mapping": {"*": True}},
        # Both are kept in the process's memory; WsgiDAV's storage in files is for one process as well.
        "lock_storage": True,
        "property_manager": True,
        "logging": {"enable": False},
    }
)
