"""The preview, by itself and as a job in a real worker's code."""

import threading

from quantstudio.core import protocol
from quantstudio.core.data_preview import DataPreview
from quantstudio.core.jobs import PreviewDataJob, parse_job
from quantstudio.engine.conduct import conduct
from quantstudio.engine.data.prepare import prepare_data
from quantstudio.engine.data.preview import preview_data
from quantstudio.engine.reporter import silent


def test_it_shows_what_will_be_learnt(tmp_path, section, tokenizer, listener, prose):
    path = tmp_path / "book.md"
    path.write_text(prose(1, 30), encoding="utf-8")
    preview = preview_data(section(path), tokenizer, 0, listener)
    data = prepare_data(section(path), tokenizer, 0, silent())
    assert preview.summary == data.summary
    first = {split: next(s for s in preview.sequences if s.split == split) for split in ("training", "held_out")}
    assert first["training"].text == tokenizer.decode(data.training[0])
    assert first["held_out"].text == tokenizer.decode(data.held_out[0])
    assert first["training"].counted == ((0, len(first["training"].text)),)
    assert first["training"].tokens == 64
    assert preview.warnings == ()


def test_warnings_are_part_of_it(tmp_path, section, tokenizer, listener, prose):
    path = tmp_path / "short.txt"
    path.write_text(prose(1, 4), encoding="utf-8")
    preview = preview_data(section(path), tokenizer, 0, listener)
    assert any("The text is short" in warning for warning in preview.warnings)


def test_the_job_ends_in_a_preview_or_a_clear_error(tmp_path, section, prose):
    path = tmp_path / "book.txt"
    path.write_text(prose(1, 30), encoding="utf-8")
    job = PreviewDataJob(model="starter", data=section(path), seed=3)
    assert parse_job(job.model_dump(mode="json")) == job
    message = conduct(job, lambda message: None, threading.Event())
    assert isinstance(message, protocol.Result), message
    assert DataPreview.model_validate(message.data).summary.source == "book.txt"
    path.unlink()
    message = conduct(job, lambda message: None, threading.Event())
    assert isinstance(message, protocol.Error)
    assert (message.kind, message.field) == ("data", "data.source.path")
