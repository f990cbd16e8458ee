"""Detects cheaply that a source may have changed: by sizes and modification times, where it has them."""

from __future__ import annotations

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.source_paths import SUFFIXES
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.path_variables import expand_variables
from bloomery.tasks.ingest.readers.registry import READERS
from bloomery.tasks.ingest.stage import identify_media


def change_digest(data: DataSource) -> str:
    """Returns a digest of the names, sizes and times of the source's files, or of a table's version.

    Equal digests mean equal content, as far as times can be trusted. A database has no version, so its query runs.

    Raises:
        DataMissing: there is no such file, table or set.
        EngineMissing: a package or a client that the source needs is not installed.
    """
    data = expand_variables(data)
    if data.kind not in SUFFIXES:
        identities = [READERS[data.kind].identify(data, origin) for origin in data.source_files]
        return digest_of_document([*identities, *([identify_media(data, by_content=False)] if data.media else [])])
    sources = [source for origin in data.source_files for source in (origin.source, origin.labels) if source]
    files = []
    for source in sources:
        for location in locations.find_files(data, source):
            info = location.filesystem.get_file_info(location.path)
            files.append([source, location.relative, info.size, info.mtime_ns])
    files += [identify_media(data, by_content=False)] if data.media else []
    return digest_of_document(files)
