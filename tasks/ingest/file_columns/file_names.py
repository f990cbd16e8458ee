"""The names of files in a table's column, as paths in the folder that they start at."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.file_column import FileColumn
from bloomery.data_contracts.recipe_sections.source_paths import REMOTE, source_scheme
from bloomery.models.media.config import MediaUnreadable

WEB = ("http://", "https://")
URLS = (*WEB, *REMOTE)
_URL_CHARACTERS = "/?=&:@!$'()*+,;~-._"


def folder_of(data: DataSource, options: FileColumn) -> str | None:
    """Returns the folder that names start at: by default that of the table; None if the table has none."""
    if options.folder is not None:
        return options.folder
    folders = {_parent(origin.source) for origin in data.source_files}
    return folders.pop() if len(folders) == 1 else None


def relative_name(name: str, folder: str, options: FileColumn) -> str:
    """Returns the path of a file inside `folder`, with slashes and without steps to folders above.

    Raises:
        MediaUnreadable: the name leads out of the folder, or names none of its files.
    """
    cut = cut_name(name, options)
    path = _inside_url(cut, folder) if folder.startswith(URLS) else _inside_folder(cut, folder)
    decoded = _server_path(path) if folder.startswith(WEB) else path
    normal = posixpath.normpath(decoded)
    if decoded.startswith("/") or normal[1:2] == ":" or normal.split("/")[0] == ".." or "\0" in decoded:
        raise MediaUnreadable("a path outside the folder")
    if normal == "." or decoded.endswith("/"):
        raise MediaUnreadable("a folder, not a file")
    return path if folder.startswith(WEB) else normal


def _server_path(path: str) -> str:
    """Returns the path that a server may look up: `join_url` encodes a `#`, and some servers change the others."""
    return re.sub(r";[^/]*", "", unquote(path.partition("?")[0]).replace("\\", "/"))


def _inside_url(name: str, folder: str) -> str:
    path = name.removeprefix(folder.rstrip("/") + "/")
    if path.startswith(URLS):
        raise MediaUnreadable("a URL outside the folder")
    return path


def _inside_folder(name: str, folder: str) -> str:
    if name.startswith(URLS):
        raise MediaUnreadable("a URL, but the recipe names a `folder`; without it, URLs are read")
    path, root = posixpath.normpath(name.removeprefix("file://")), posixpath.normpath(folder) + "/"
    return path.removeprefix(root) if name.startswith(("/", "file://")) else name


def cut_name(name: str, options: FileColumn) -> str:
    """Returns a name without `prefix` and with `suffix`, with slashes in place of the separators of Windows."""
    cut, prefix = name.strip(), options.prefix or ""
    if not cut.startswith(URLS):
        cut, prefix = cut.replace("\\", "/"), prefix.replace("\\", "/")
    cut = cut.removeprefix(prefix)
    if options.suffix and not cut.lower().endswith(options.suffix.lower()):
        cut += options.suffix
    return cut


def join_url(folder: str, relative: str) -> str:
    """Returns the URL of a file below that of a folder. What is already encoded stays."""
    is_encoded = unquote(relative) != relative
    return folder.rstrip("/") + "/" + quote(relative, safe=_URL_CHARACTERS + ("%" if is_encoded else ""))


def leading_folders(names: Sequence[str]) -> str:
    """Returns the folders that all names start with, with a slash at the end; empty if there are none."""
    parents = [name.replace("\\", "/").split("/")[:-1] for name in names]
    common = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return "".join(f"{part}/" for part in common)


def _parent(source: str) -> str | None:
    """Returns the folder of a table, the zip that it is in, or None of a table of a database."""
    if source_scheme(source) is not None and not source.startswith(REMOTE):
        return None
    if source.lower().endswith(".zip"):
        return source
    fixed = re.split(r"[*?\[]", source)[0]
    is_folder = Path(source).is_dir() if not source.startswith(REMOTE) else "." not in posixpath.basename(source)
    return source if is_folder and fixed == source else posixpath.dirname(fixed)
