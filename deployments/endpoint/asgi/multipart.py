"""The parts of a `multipart/form-data` body, parsed by python-multipart."""

from __future__ import annotations

from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from bloomery.data_contracts.requests.problems import BodyUnreadable
from bloomery.deployments.endpoint.http.errors import too_many_rows

MULTIPART = "multipart/form-data"


class FormPart(NamedTuple):
    """One part. `file_name` is None for a field without a file."""

    name: str
    file_name: str | None
    content: bytes


def parse_form(content_type: bytes, body: bytes, max_rows: int) -> list[FormPart]:
    """Returns the parts in their order.

    Raises:
        BodyUnreadable: the body is damaged or incomplete, or the content type names no boundary.
        HTTPError: there are more parts than a request may have rows.
    """
    parts: list[FormPart] = []
    is_complete = False

    def add(name: bytes | None, file_name: bytes | None, content: bytes) -> None:
        if len(parts) > max_rows:  # one part may have the other columns
            raise too_many_rows(len(parts), max_rows)
        decoded_name = None if file_name is None else file_name.decode("utf-8", "replace")
        parts.append(FormPart((name or b"").decode("utf-8", "replace"), decoded_name, content))

    def add_field(field: Field) -> None:
        add(field.field_name, None, field.value or b"")

    def add_file(file: File) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_name, file.file_object.read())
        file.close()

    def end() -> None:
        nonlocal is_complete
        is_complete = True

    _, options = parse_options_header(content_type)
    try:
        # The body is in memory already, so no part is written to a temporary file.
        config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1, "UPLOAD_ERROR_ON_BAD_CTE": True}
        parser = FormParser(
            MULTIPART, add_field, add_file, on_end=end, boundary=options.get(b"boundary"), config=config
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as failure:
        raise BodyUnreadable(f"not a valid form: {failure}") from None
    if not is_complete:
        raise BodyUnreadable("the form ends before its last boundary")
    return parts
