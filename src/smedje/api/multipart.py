"""Multipart forms as they stream in: small fields kept, the one file part handed on piece by piece.

Knows RFC 7578 through python-multipart's parser; never writes to a temporary folder and never holds a file whole.
"""

import email.message
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from smedje.errors import InvalidRequest

LONGEST_FIELD = 4096
MOST_PARTS = 16


@dataclass
class FormReader:
    """Feed it the body with `write`; take file bytes with `take`; call `end` after the last piece.

    boundary: from the Content-Type header. file_part: name of the part that carries the file.
    """

    boundary: bytes
    file_part: str = "file"
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None

    def __post_init__(self) -> None:
        self._file = bytearray()
        self._value = bytearray()
        self._header = (bytearray(), bytearray())
        self._headers: dict[bytes, bytes] = {}
        self._name: str | None = None
        self._parts = 0
        self._ended = False
        self._parser = MultipartParser(
            self.boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def write(self, data: bytes) -> None:
        """Parse the next piece of the body. Raises InvalidRequest for a broken form."""
        try:
            self._parser.write(data)
        except FormParserError as problem:
            raise InvalidRequest(f"The multipart form is broken: {problem}.", code="invalid_form") from problem

    def take(self) -> bytes:
        """The bytes of the file part that came since the last call."""
        taken = bytes(self._file)
        self._file.clear()
        return taken

    def end(self) -> None:
        """Raises InvalidRequest when the body stopped before the form was complete, or has no file."""
        if not self._ended:
            raise InvalidRequest(
                "The upload ended before the form was complete; nothing was kept. Send it again.", code="truncated_body"
            )
        if self.filename is None:
            raise InvalidRequest(
                f"The form has no part {self.file_part!r} with a file in it.",
                code="missing_field",
                param=self.file_part,
            )

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise InvalidRequest(f"The form has more than {MOST_PARTS} parts.", code="invalid_form")
        self._headers.clear()
        self._value.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _on_header_end(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        self._name = _text(options.get(b"name", b""))
        if self._name == self.file_part and b"filename" in options:
            if self.filename is not None:
                raise InvalidRequest(
                    f"The form has more than one part {self.file_part!r}; send one file a request.",
                    code="invalid_form",
                    param=self.file_part,
                )
            self.filename = _text(options[b"filename"])
        elif not self._name or self._name in self.fields or self._name == self.file_part:
            raise InvalidRequest(
                f"The form's part {self._name!r} is not usable: each needs a name of its own, and a file a filename.",
                code="invalid_form",
                param=self._name or None,
            )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self.file_part:
            self._file += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > LONGEST_FIELD:
            raise InvalidRequest(
                f"The form's field {self._name!r} is longer than {LONGEST_FIELD} bytes.",
                code="invalid_form",
                param=self._name,
            )

    def _on_part_end(self) -> None:
        if self._name is not None and self._name != self.file_part:
            self.fields[self._name] = _text(bytes(self._value))

    def _on_end(self) -> None:
        self._ended = True


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type header names. Raises InvalidRequest for anything but a multipart form."""
    header = email.message.Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if (
        header.get_content_type() != "multipart/form-data"
        or not isinstance(boundary, str)
        or not 1 <= len(boundary) <= 70
    ):
        raise InvalidRequest(
            "A file is uploaded as multipart/form-data with the parts `purpose` and `file`.", code="invalid_form"
        )
    return boundary.encode("latin-1", "replace")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
