"""What tells cheaply that a source may have changed: sizes and times, where it has them."""

from __future__ import annotations

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.recipe_sections.data_source import SUFFIXES, Data
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.path_variables import expand_variables
from bloomery.tasks.ingest.readers.registry import READERS


def change_digest(data: Data) -> str:
    """A digest of the names, sizes and times of the source's files; of a table, what it says of its version.

    Equal stamps mean equal content, as far as times can be trusted. A database tells no version, so its query is asked.

    Raises:
        DataMissing: there is no such file, table or set.
        EngineMissing: a package or a client that the source needs is not there.
    """
    found = expand_variables(data)
    if found.kind not in SUFFIXES:
        return digest_of_document([READERS[found.kind].identify(found, origin) for origin in found.origins])
    sources = [source for origin in found.origins for source in (origin.source, origin.labels) if source]
    told = []
    for source in sources:
        for place in locations.find_files(found, source):
            info = place.filesystem.get_file_info(place.path)
            told.append([source, place.relative, info.size, info.mtime_ns])
    return digest_of_document(told)
