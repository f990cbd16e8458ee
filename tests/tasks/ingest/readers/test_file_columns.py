"""Columns that name files of images and recordings: the rows have pixels and samples in place of the names."""

from __future__ import annotations

import http.server
import io
import os
import socket
import threading
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError
from scipy.io import wavfile

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.models.media.config import MediaUnreadable
from bloomery.tasks.ingest.change_detection import change_digest
from bloomery.tasks.ingest.file_columns import decoding
from bloomery.tasks.ingest.file_columns.file_stores import ArrowFolder, UrlFiles, WebFolder
from bloomery.tasks.ingest.stage import locate_source

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
GREY = {"kind": "image", "mode": "L"}
COLOUR = {"kind": "image", "mode": "RGB"}


def write_image(path: Path, value: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS if value is None else np.full((2, 3, 3), value, np.uint8)).save(path)
    return path


def write_table(folder: Path, *names: str, header: str = "photo,label") -> str:
    path = folder / "rows.csv"
    path.write_text("\n".join([header, *(f'"{name}",{row}' if name else f",{row}" for row, name in enumerate(names))]))
    return str(path)


def test_images_named_by_a_table_are_decoded_beside_their_labels(ingest_rows, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "images" / "b.jpg", 200)
    source = write_table(tmp_path, "b.jpg", "", "a.png", "a.png", " ")
    result = ingest_rows(source=source, media={"photo": {**COLOUR, "folder": str(tmp_path / "images")}})
    assert [row["label"] for row in result.rows] == ["0", "1", "2", "3", "4"]
    expected = PIXELS.transpose(2, 0, 1).reshape(-1).tolist()
    assert [row["photo"] for row in result.rows] == [[200] * 18, None, expected, expected, None]
    assert result.table.schema.field("photo").type == pa.list_(pa.uint8())
    assert not result.malformed


def test_files_that_do_not_open_are_malformed_rows_with_reasons(ingest_rows, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "secret.png")
    (tmp_path / "images" / "page.png").write_text("<html>")
    (tmp_path / "images" / "cut.png").write_bytes((tmp_path / "images" / "a.png").read_bytes()[:40])
    (tmp_path / "images" / "folder").mkdir()
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["a.png", "b.png", "page.png", "cut.png", "../secret.png", "link.png", "folder", f"{tmp_path}/secret.png"]
    names += ["x/../a.png", "http://127.0.0.1/a.png", "C:\\a.png", "n" * 300 + ".png", "a.png/b.png", "..", "./a.png"]
    source = write_table(tmp_path, *names)
    result = ingest_rows(source=source, media={"photo": {**COLOUR, "folder": str(tmp_path / "images")}})
    assert [row["label"] for row in result.rows] == ["0", "8", "14"]
    reasons = {text: reason.removeprefix("column photo: ") for _, _, text, reason in result.malformed}
    assert {line for _, line, _, _ in result.malformed} == set(range(1, 16)) - {1, 9, 15}
    assert reasons["b.png"] == "no such file"
    assert reasons["page.png"] == "no image: no format that Pillow knows"
    assert reasons["cut.png"].startswith("no image")
    assert reasons["link.png"] == "a link out of the folder"
    assert reasons["folder"] == "a folder, not a file"
    assert reasons["a.png/b.png"] in ("no such file", "Not a directory")
    assert reasons["http://127.0.0.1/a.png"].startswith("a URL")
    outside = [reasons[name] for name in ("../secret.png", f"{tmp_path}/secret.png", "C:\\a.png", "..")]
    assert set(outside) == {"a path outside the folder"}


def test_names_are_cut_and_completed(ingest_rows, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "train" / "7.jpg", 100)
    media = {**GREY, "folder": str(tmp_path / "images"), "prefix": "C:\\data\\", "suffix": ".jpg"}
    source = write_table(tmp_path, "C:\\data\\train\\7", "train/7", "C:/data/train/7.jpg", f"{tmp_path}/images/train/7")
    assert [row["photo"] for row in ingest_rows(source=source, media={"photo": media}).rows] == [[100] * 6] * 4


def test_the_default_folder_is_that_of_the_table(ingest_rows, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png", 7)
    source = write_table(tmp_path, "images/a.png", (tmp_path / "images" / "a.png").as_uri())
    assert len(ingest_rows(source=source, media={"photo": GREY}).rows) == 2
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(source, "rows.csv")
        archive.write(tmp_path / "images" / "a.png", "images/a.png")
    result = ingest_rows(source=str(tmp_path / "all.zip"), format="csv", media={"photo": GREY})
    assert [row["photo"] for row in result.rows] == [[7] * 6]
    inside = {**GREY, "folder": str(tmp_path / "all.zip" / "images"), "prefix": "images/"}
    assert len(ingest_rows(source=source, media={"photo": inside}).rows) == 1


def test_recordings_and_bytes_are_decoded_in_several_columns(ingest_rows, tmp_path: Path) -> None:
    wave = np.sin(np.arange(800) / 5).astype(np.float32)
    wavfile.write(tmp_path / "a.wav", 8000, wave)
    wavfile.write(tmp_path / "b.wav", 4000, wave)
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "PNG")
    table = pa.table({"call": ["a.wav", "b.wav", None], "photo": [content.getvalue(), None, b"no"], "y": [1, 2, 3]})
    pq.write_table(table, tmp_path / "rows.parquet")
    call = {"kind": "audio", "sample_rate": 8000, "resample": True}
    result = ingest_rows(source=str(tmp_path / "rows.parquet"), media={"call": call, "photo": COLOUR})
    assert [len(row["call"]) for row in result.rows] == [800, 1600]
    assert [row["photo"] and len(row["photo"]) for row in result.rows] == [18, None]
    assert [(line, reason[:22]) for _, line, _, reason in result.malformed] == [(3, "column photo: no image")]


def test_dead_columns_are_errors_before_rows_are_read(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    source = write_table(tmp_path, "data/img/a.png", "data/img/b.png")
    media = {"photo": {**GREY, "folder": str(tmp_path / "images")}}
    with pytest.raises(DataMissing, match=r"none of the 2 files .* photo .*images: data/img/a.png \(no such") as error:
        locate_source(DataSource(source=source, media=media))
    assert "prefix: data/img/" in error.value.remedy
    sound = {"photo": {"kind": "audio", "sample_rate": 8000, "prefix": "data/img/", "folder": str(tmp_path / "images")}}
    with pytest.raises(DataMissing, match=r"none of 1 files .* can be decoded: data/img/a.png \(no wav"):
        locate_source(DataSource(source=source, media=sound))
    with pytest.raises(DataMissing, match="there is no folder"):
        locate_source(DataSource(source=source, media={"photo": {**GREY, "folder": str(tmp_path / "x")}}))
    with pytest.raises(RecipeInvalid, match="there is no column picture"):
        locate_source(DataSource(source=source, media={"picture": GREY}))
    with pytest.raises(DataMissing, match="names no files"):
        locate_source(DataSource(source=write_table(tmp_path, "", ""), media=media))
    with pytest.raises(DataMissing, match="no `folder`"):
        locate_source(DataSource(source="sklearn:iris", rename={"label": "photo"}, media={"photo": GREY}))


def test_images_of_two_sizes_need_a_size(ingest_rows, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "b.png")
    source = write_table(tmp_path, "a.png", "b.png")
    with pytest.raises(DataMissing, match="sizes 2 x 3 and 5 x 5"):
        ingest_rows(source=source, media={"photo": COLOUR})
    rows = ingest_rows(source=source, media={"photo": {**COLOUR, "size": [4, 4]}}).rows
    assert [len(row["photo"]) for row in rows] == [48, 48]


def test_digests_change_with_the_files_that_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    data = DataSource(source=write_table(tmp_path, "a.png", "b.png"), media={"photo": GREY})
    digests = [(locate_source(data).digest, change_digest(data))]
    write_image(tmp_path / "unused.png")
    assert (locate_source(data).digest, change_digest(data)) == digests[0]
    os.utime(tmp_path / "a.png", (1, 1))
    assert locate_source(data).digest == digests[0][0]
    assert change_digest(data) != digests[0][1]
    for path, value in ((tmp_path / "a.png", 9), (tmp_path / "b.png", 9)):
        write_image(path, value)
        digests.append((locate_source(data).digest, change_digest(data)))
    assert len({digest for pair in digests for digest in pair}) == 6
    other = data.model_copy(update={"media": {"photo": data.media["photo"].model_copy(update={"mode": "RGB"})}})
    assert locate_source(other).digest != digests[-1][0]


@pytest.fixture
def web_folder(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of the files in `tmp_path/web`."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "web"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_files_of_a_web_server_are_read(ingest_rows, tmp_path: Path, web_folder: str) -> None:
    write_image(tmp_path / "web" / "my photos" / "a#1.png", 7)
    names = ["my photos/a#1.png", f"{web_folder}/my%20photos/a%231.png", "b.png", "../a.png", "%2e%2e/a.png"]
    names += ["a#/../../a.png", "a%23/%2e%2e/../a.png", "..\\a.png", "..%5Ca.png", "..;/a.png"]
    source = write_table(tmp_path, *names, "http://127.0.0.1:1/a.png")
    below = {"photo": {**GREY, "folder": web_folder}}
    result = ingest_rows(source=source, media=below)
    assert [row["photo"] for row in result.rows] == [[7] * 6] * 2
    reasons = [reason.removeprefix("column photo: ") for *_, reason in result.malformed]
    assert reasons == [
        "the server answers with status 404",
        *["a path outside the folder"] * 7,
        "a URL outside the folder",
    ]
    digest = locate_source(DataSource(source=source, media=below)).digest
    write_image(tmp_path / "web" / "my photos" / "a#1.png", 255)
    os.utime(tmp_path / "web" / "my photos" / "a#1.png", (10**9, 10**9))
    assert locate_source(DataSource(source=source, media=below)).digest != digest
    urls = write_table(tmp_path, names[1], "")
    assert [row["photo"] for row in ingest_rows(source=urls, media={"photo": GREY}).rows] == [[255] * 6, None]


@pytest.mark.parametrize("status", [403, 404, 501])
def test_files_of_a_server_that_refuses_their_headers_are_read(
    tmp_path: Path, web_folder: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        http.server.SimpleHTTPRequestHandler, "do_HEAD", lambda handler: handler.send_error(status), raising=True
    )
    write_image(tmp_path / "web" / "a.png", 7)
    folder = WebFolder(web_folder)
    assert folder.identify("a.png") == [sha256((tmp_path / "web" / "a.png").read_bytes()).hexdigest()]
    with pytest.raises(MediaUnreadable, match="status 404"):
        folder.identify("b.png")


def test_headers_of_a_busy_server_are_read_again(
    tmp_path: Path, web_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomery.tasks.ingest.file_columns.file_stores._PAUSE_S", 0)
    answers = iter([503, 429])
    answer = http.server.SimpleHTTPRequestHandler.do_HEAD

    def refuse_twice(handler: http.server.SimpleHTTPRequestHandler) -> None:
        status = next(answers, None)
        answer(handler) if status is None else handler.send_error(status)

    write_image(tmp_path / "web" / "a.png", 7)
    folder = WebFolder(web_folder)
    identity = folder.identify("a.png")
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "do_HEAD", refuse_twice)
    assert folder.identify("a.png") == identity
    assert len(identity) == 3


def test_a_url_with_the_name_of_no_server_is_an_error_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloomery.tasks.ingest.file_columns.file_stores._PAUSE_S", 0)
    reasons = {"unknown.example": socket.EAI_NONAME, "unreachable.example": socket.EAI_AGAIN}

    def refuse(host: str, *_: object, **__: object) -> None:
        raise socket.gaierror(reasons[host], "no address")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(MediaUnreadable, match="no server has the name in its URL"):
        UrlFiles().identify("https://unknown.example/a.png")
    for store, path in ((UrlFiles(), "https://unreachable.example/a.png"), (WebFolder("https://unknown.example"), "a")):
        with pytest.raises(DataMissing, match=r"cannot be read: .*no address"):
            store.read(path)


def test_large_files_are_decoded_few_at_a_time(ingest_rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    to_lists = decoding._to_lists
    monkeypatch.setattr(decoding, "_to_lists", lambda values, kind: sizes.append(len(values)) or to_lists(values, kind))
    write_image(tmp_path / "a.png")
    source = write_table(tmp_path, *["a.png"] * 12)
    assert len(ingest_rows(source=source, media={"photo": COLOUR}).rows) == 12
    assert sizes == [1, 2, 4, 5]
    sizes.clear()
    monkeypatch.setattr(decoding, "_BATCH_BYTES", 20)
    assert len(ingest_rows(source=source, media={"photo": {**COLOUR, "size": [3, 2]}}).rows) == 12
    assert sizes == [1] * 12
    sizes.clear()
    source = write_table(tmp_path, *["none.png"] * 30, "a.png")
    assert len(ingest_rows(source=source, media={"photo": COLOUR}).rows) == 1
    assert sizes == [0, 0, 0, 0, 1]  # of 1, 2, 4, 8 and 16 rows
    sizes.clear()
    monkeypatch.setattr(decoding, "_BATCH_BYTES", 3_600)
    source = write_table(tmp_path, *[None] * 20, *["a.png"] * 20)
    assert len(ingest_rows(source=source, media={"photo": {**COLOUR, "size": [30, 20]}}).rows) == 40
    assert max(sizes) == 2


def test_a_server_that_does_not_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web_folder: str
) -> None:
    monkeypatch.setattr("bloomery.tasks.ingest.file_columns.file_stores._PAUSE_S", 0)
    data = DataSource(source=write_table(tmp_path, "http://127.0.0.1:1/a.png"), media={"photo": GREY})
    with pytest.raises(DataMissing, match="cannot be read"):
        locate_source(data)


def test_a_store_that_fails_is_an_error(tmp_path: Path) -> None:
    store = ArrowFolder("s3://bucket/folder")
    store._filesystem = SimpleNamespace(get_file_info=_refuse, open_input_file=_refuse)
    for attempt in (store.identify, store.read):
        with pytest.raises(DataMissing, match=r"s3://bucket/folder/a\.png cannot be read: no connection"):
            attempt("a.png")


def _refuse(path: str) -> None:
    raise OSError("no connection")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "image"}, "mode: images need"),
        ({"kind": "audio"}, "sample_rate: recordings need"),
        ({"kind": "image", "mode": "L", "sample_rate": 8}, "sample_rate: no meaning"),
        ({"kind": "audio", "sample_rate": 8, "size": [1, 1]}, "size: no meaning"),
        ({"kind": "video"}, "image"),
    ],
)
def test_options_of_another_kind_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSource(source="rows.csv", media={"photo": options})


def test_folders_start_at_the_recipe_and_take_variables_and_periods(tmp_path: Path) -> None:
    def folder(text: str) -> DataSource:
        return DataSource(source="rows.csv", media={"photo": {**GREY, "folder": text}})

    assert folder("img").with_absolute_paths(tmp_path).media["photo"].folder == str(tmp_path / "img")
    for text in ("https://example.org/img", "s3://bucket/img", "${DATA}/img"):
        assert folder(text).with_absolute_paths(tmp_path).media["photo"].folder == text
    assert folder("img/{period:%Y}").is_dated
    assert folder("img/{period:%Y}").for_period("2024-05-06").media["photo"].folder == "img/2024"
