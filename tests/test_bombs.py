"""Small requests that would cost much more than their size: time on the loop, or memory."""

import gzip
import io
import time

import flatbuffers
import numpy as np
import pyarrow
import pytest

from prodml.serve import arrow
from prodml.serve.decoder import Unreadable
from prodml.serve.flat import NotArrow
from prodml.serve.frames import asked_rows
from prodml.serve.segments import Segments, read_segments, salvage
from prodml.serve.stream import read_stream
from prodml.serve.tensors import read_wanted, tensor_values
from prodml.serve.wire import MEMBERS, PORTION, Unanswerable, inflate
from prodml.settings import Mistake

MOST = 4_000_000


def test_gzip_of_very_many_members_is_refused_soon() -> None:
    one = gzip.compress(b"")
    began = time.thread_time()
    with pytest.raises(Unanswerable):
        inflate(one * (MOST // len(one)), MOST)
    assert time.thread_time() - began < 1


@pytest.mark.parametrize("size", [0, 1, PORTION - 1, PORTION, 3 * PORTION, MOST])
def test_gzip_of_several_members_is_read(size: int) -> None:
    content = np.random.default_rng(7).bytes(size)
    half = size // 2
    assert inflate(gzip.compress(content), MOST) == content
    assert inflate(gzip.compress(content[:half]) + gzip.compress(content[half:]), MOST) == content
    with pytest.raises(Unanswerable):
        inflate(gzip.compress(content)[:-1], MOST)
    if size:
        with pytest.raises(Unanswerable, match="larger"):
            inflate(gzip.compress(content), size - 1)
    assert inflate(gzip.compress(b"x") * MEMBERS, MOST) == b"x" * MEMBERS


def test_a_shared_context_is_not_multiplied_without_end() -> None:
    common = {str(i): 0 for i in range(2_000)}
    with pytest.raises(Mistake, match="context"):
        asked_rows({"context": common, "examples": [{}] * 1_000}, "classify")


def test_an_output_is_told_once() -> None:
    with pytest.raises(Mistake, match="twice"):
        read_wanted({"outputs": [{"name": "a"}] * 2}, ["a"])


def test_data_is_given_once() -> None:
    with pytest.raises(Mistake, match="twice"):
        tensor_values({"shape": [1], "datatype": "INT8", "data": [1]}, b"\1", "input 0")


def test_one_long_name_does_not_stand_for_ten_thousand_columns() -> None:
    builder = flatbuffers.Builder(1024)
    field = arrow._field(builder, "n" * 100_000, ["a"])
    fields = arrow._vector(builder, 4, [field] * 10_000)
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(1, fields, 0)
    body = arrow._message(builder, 1, builder.EndObject())
    with pytest.raises(Unreadable, match="whole"):
        arrow.arrow_columns(body, 10, {"a"})


def written(*batches: pyarrow.RecordBatch) -> bytes:
    out = io.BytesIO()
    with pyarrow.ipc.new_stream(out, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return out.getvalue()


def test_a_dictionary_is_not_copied_for_each_batch() -> None:
    words = pyarrow.array([str(i) for i in range(200_000)])
    coded = pyarrow.DictionaryArray.from_arrays(pyarrow.array([], pyarrow.int32()), words)
    batch = pyarrow.record_batch([coded], names=["a"])
    body = written(*[batch] * 2_000)
    began = time.thread_time()
    read_stream(body, 10, {"a"})
    assert time.thread_time() - began < 1


def test_missing_places_of_a_dictionary_are_missing() -> None:
    places = pyarrow.array([1, None, 0], pyarrow.uint8())
    coded = pyarrow.DictionaryArray.from_arrays(places, pyarrow.array(["x", "y"]))
    body = written(pyarrow.record_batch([coded], names=["a"]))
    assert read_stream(body, 10, {"a"}).pieces[0][0].plain() == ["y", None, "x"]


def test_nothing_may_follow_a_stream() -> None:
    body = written(pyarrow.record_batch([pyarrow.array([1.0])], names=["a"]))
    for more in (body, b"junk"):
        with pytest.raises(NotArrow):
            read_stream(body + more, 10, {"a"})


def test_rows_are_found_after_the_clock_stepped_back(tmp_path, monkeypatch):
    fields, now, right = {"id": "text", "at": "number"}, time.time(), time.time_ns
    segments = Segments(tmp_path)
    monkeypatch.setattr(time, "time_ns", lambda: right() + 7200 * 10**9)
    segments.write("predictions", fields, {"id": ["ahead"], "at": np.array([now + 7200])})
    monkeypatch.setattr(time, "time_ns", right)
    segments.write("predictions", fields, {"id": ["right"], "at": np.array([now])})
    segments.close()
    found = read_segments(tmp_path, "predictions", now - 60, now + 60)
    assert [one for table in found for one in table["id"].to_pylist()] == ["right"]


def test_files_of_others_are_left_alone(tmp_path):
    other = tmp_path / "film.part"
    other.write_bytes(b"half of it")
    assert salvage(tmp_path) == 0 and other.read_bytes() == b"half of it"
