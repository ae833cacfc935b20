"""Conversations: one loaded model, many requests, and nothing that one of them can break for the next."""

import queue
import threading
import time

import pytest
import torch

from quantstudio.core import protocol
from quantstudio.core.errors import Cancelled, ModelNotFound, ModelUnsafe, ModelUnsupported
from quantstudio.core.jobs import ChatJob, ChatMessage, ChatRequest, Sampling, Turn
from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import MachineSection, Recipe
from quantstudio.core.schemes import W4A16
from quantstudio.engine import chat_template
from quantstudio.engine.chat import converse, run_chat
from quantstudio.engine.chat_template import render
from quantstudio.engine.load import load_model
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import Reporter, silent

TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
GREEDY = Sampling(temperature=0, max_tokens=12, repetition_penalty=1)
CPU = MachineSection(device="cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that spin while they wait for each other make a tiny model slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded(tiny_folder):
    """The tiny model, loaded once."""
    return load_model(tiny_folder, "cpu", silent())


@pytest.fixture
def model(loaded):
    """The tiny model with a chat template: `model(template)`."""

    def make(template=TEMPLATE):
        loaded.tokenizer.chat_template = template
        return loaded

    return make


def turn(*contents, template=True, sampling=GREEDY, roles=("user", "assistant")):
    messages = [ChatMessage(role=roles[number % 2], content=text) for number, text in enumerate(contents)]
    return Turn(ChatRequest(messages=tuple(messages), template=template, sampling=sampling))


def lined_up(*turns):
    requests = queue.Queue()
    for each in [*turns, None]:
        requests.put(each)
    return requests


def talk(loaded, *turns, on_message=None):
    """Ask these in a row; every message."""
    messages = []

    def sink(message):
        messages.append(message)
        if on_message:
            on_message(message)

    converse(loaded, lined_up(*turns), Reporter(sink))
    return messages


def of(messages, kind):
    return [message for message in messages if isinstance(message, kind)]


def text_of(messages, number):
    return "".join(message.text for message in of(messages, protocol.Tokens) if message.turn == number)


def test_from_folder_to_answers(tiny_folder):
    messages = []
    requests = lined_up(turn("Call me Ishmael.", template=False))
    run_chat(ChatJob(model=str(tiny_folder), machine=CPU), requests, Reporter(messages.append))
    assert [phase.id for phase in of(messages, protocol.Phase)] == ["load", "chat"]
    assert isinstance(messages[-1], protocol.Answer)


@pytest.fixture(scope="module")
def quantized(tiny_folder, tmp_path_factory):
    """The tiny model in int4, where a run would have put it."""
    folder, recipe = tmp_path_factory.mktemp("run") / "model", Recipe(scheme=W4A16(group_size=32))
    folder.mkdir()
    info = read_model_info(tiny_folder)
    quantize_model(info, make_plan(info, recipe), recipe, folder, silent())
    return folder


@pytest.mark.parametrize(
    ("settings", "preferred", "engine"),
    [
        ({"engine": "onnxruntime"}, "torch", "ONNX Runtime"),
        ({}, "onnxruntime", "ONNX Runtime"),
        ({}, "torch", "torch"),
        ({"engine": "torch"}, "onnxruntime", "torch"),
        ({"kv_cache": "int8"}, "onnxruntime", "torch"),  # only torch has it
        ({"kernel": "cpu_int4"}, "onnxruntime", "torch"),
    ],
)
def test_the_engine_that_was_asked_for_or_found_faster(quantized, monkeypatch, settings, preferred, engine):
    monkeypatch.setattr("quantstudio.engine.chat.preferred_engine", lambda result: preferred)
    machine = MachineSection.model_validate({"device": "cpu", **settings})
    messages = []
    requests = lined_up(turn("Once upon", template=False))
    run_chat(ChatJob(model=str(quantized), machine=machine), requests, Reporter(messages.append))
    assert text_of(messages, 0)
    assert ("ONNX Runtime" in [m.text for m in of(messages, protocol.Engine)]) is (engine == "ONNX Runtime")


def test_an_original_on_the_other_engine_is_refused_with_the_reason(tiny_folder):
    machine = MachineSection(device="cpu", engine="onnxruntime")
    with pytest.raises(ModelUnsupported, match="not quantized"):
        run_chat(ChatJob(model=str(tiny_folder), machine=machine), lined_up(), silent())


def test_a_conversation(model):
    messages = talk(model(), turn("Call me Ishmael."), turn("Call me Ishmael."), turn("Whale"))
    answers = of(messages, protocol.Answer)
    assert [answer.turn for answer in answers] == [0, 1, 2]
    assert text_of(messages, 0) == text_of(messages, 1) != ""
    for answer in answers:
        assert answer.reason in ("end", "length")
        assert 0 < answer.tokens <= 12
        assert answer.prompt_tokens > 3
        assert answer.ttft_s > 0
    last_of_first = max(i for i, m in enumerate(messages) if isinstance(m, protocol.Tokens) and m.turn == 0)
    assert last_of_first < messages.index(answers[0])


def test_the_template_lays_the_conversation_out(model):
    messages = talk(model("{{ messages[0]['content'] }}"), turn("Whale"), turn("Whale", template=False))
    assert text_of(messages, 0) == text_of(messages, 1)
    laid_out = of(talk(model(), turn("Whale")), protocol.Answer)[0]
    assert laid_out.prompt_tokens > of(messages, protocol.Answer)[0].prompt_tokens


def test_a_follow_up_question_reads_only_what_is_new(model):
    first = turn("The whale swam on and on. " * 2)
    said = text_of(talk(model(), first), 0)
    follow_up = turn(first.request.messages[0].content, said, "And then?")
    _, answer = of(talk(model(), first, follow_up), protocol.Answer)
    history = of(talk(model(), turn(first.request.messages[0].content)), protocol.Answer)[0].prompt_tokens
    # All of the first prompt is known, and usually the answer: unless its tokens are not those of its text.
    assert history <= answer.reused_tokens < answer.prompt_tokens


def test_progress_is_told_while_a_long_conversation_is_read(model, monkeypatch):
    monkeypatch.setattr("quantstudio.engine.generate.PROMPT_CHUNK", 16)
    monkeypatch.setattr("quantstudio.engine.chat.PROMPT_CHUNK", 16)
    messages = talk(model(), turn("The whale swam on and on. " * 4))
    told = of(messages, protocol.Progress)
    answer = of(messages, protocol.Answer)[0]
    assert {message.total for message in told} == {answer.prompt_tokens}
    assert told[-1].done == answer.prompt_tokens
    assert len(told) == -(-answer.prompt_tokens // 16)


def test_stop_ends_an_answer_within_a_token(model):
    endless = Sampling(temperature=0, max_tokens=200)
    first, second = turn("Whale", sampling=endless), turn("Whale")

    def stop(message):
        if isinstance(message, protocol.Tokens):
            first.stop.set()

    messages = talk(model(), first, second, on_message=stop)
    stopped, after = of(messages, protocol.Answer)
    assert stopped.reason == "stopped"
    assert stopped.tokens <= 4  # one piece of text may need several tokens
    assert after.reason in ("end", "length")


def test_a_request_stopped_before_its_turn_gets_its_answer(model):
    late = turn("Whale")
    late.stop.set()
    answer = of(talk(model(), late), protocol.Answer)[0]
    assert (answer.reason, answer.tokens) == ("stopped", 0)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "no chat template"),
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0].content.nothing.more }}", "could not lay out"),
        ("{% if %}", "could not lay out"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "could not lay out"),
        ("{% for a in range(10**9) %}x{% endfor %}", "could not lay out"),
        ("x" * 300_000, "longer than"),
    ],
)
def test_a_bad_template_costs_its_own_turn_only(model, template, words):
    messages = talk(model(template), turn("Whale"), turn("Whale", template=False))
    failed, good = of(messages, protocol.Answer)
    assert failed.reason == "failed"
    assert words in of(messages, protocol.Notice)[0].text
    assert "plain completion" in of(messages, protocol.Notice)[0].text
    assert good.reason in ("end", "length")


def test_nothing_to_answer(model):
    messages = talk(model(), turn(), turn("", template=False), turn("Whale"))
    assert [answer.reason for answer in of(messages, protocol.Answer)][:2] == ["failed", "failed"]
    assert len(of(messages, protocol.Notice)) == 2


def test_a_long_conversation_loses_its_oldest_turns(model):
    old = ("The whale swam on and on. " * 3, "Aye. " * 3)
    messages = talk(model(), turn(*old * 8, "Whale"))
    answer = of(messages, protocol.Answer)[0]
    assert answer.reason in ("end", "length")
    assert 100 < answer.prompt_tokens <= 256 - 12
    notice = of(messages, protocol.Notice)[0].text
    left_out = int(notice.split("first ")[1].split(" ")[0])
    assert left_out % 2 == 0
    assert 0 < left_out < 16
    newest = turn(*(old * 8 + ("Whale",))[left_out:])
    assert text_of(talk(model(), newest), 0) == text_of(messages, 0)


def test_the_system_message_stays(model):
    system = ChatMessage(role="system", content="You are Ahab.")
    long = turn(*("Whale " * 20, "Aye.") * 12, "Whale").request
    request = long.model_copy(update={"messages": (system, *long.messages)})
    seen = model("{% if messages[0].role != 'system' %}{{ raise_exception('no captain') }}{% endif %}" + TEMPLATE)
    messages = talk(seen, Turn(request))
    assert of(messages, protocol.Answer)[0].reason in ("end", "length")
    assert "left out" in of(messages, protocol.Notice)[0].text


def test_a_message_that_is_too_long_by_itself(model):
    messages = talk(model(), turn("whale " * 2000), turn("Whale"))
    assert of(messages, protocol.Answer)[0].reason == "failed"
    assert "The last message alone" in of(messages, protocol.Notice)[0].text


def test_a_long_text_is_continued_from_its_end(model):
    text = "The whale swam. " * 300
    messages = talk(model(), turn(text, template=False))
    assert of(messages, protocol.Answer)[0].prompt_tokens == 256 - 12
    assert "last 244 tokens" in of(messages, protocol.Notice)[0].text


def test_cancel_ends_the_conversation(model):
    cancel = threading.Event()
    failures = []

    def chat():
        try:
            converse(model(), queue.Queue(), Reporter(lambda message: None, cancel))
        except Cancelled as error:
            failures.append(error)

    thread = threading.Thread(target=chat)
    thread.start()
    time.sleep(0.3)
    cancel.set()
    thread.join(30)
    assert len(failures) == 1


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelNotFound):
        run_chat(ChatJob(model=str(tmp_path / "nothing"), machine=CPU), lined_up(), silent())


class Tokenizer:
    """Just enough of a tokenizer to render a template as transformers does."""

    def __init__(self, template):
        self.chat_template = template

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, _ = render_jinja_template(
            conversations=[messages], chat_template=self.chat_template, add_generation_prompt=add_generation_prompt
        )
        return rendered[0]


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_runs_for_hours_is_ended():
    started = time.monotonic()
    with pytest.raises(ModelUnsafe, match="still running"):
        render(Tokenizer(LOOPS), [], threading.Event(), seconds=0.2)
    assert time.monotonic() - started < 10


def test_a_stop_ends_a_template_too():
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    assert render(Tokenizer(LOOPS), [], stop, seconds=60) == ""


def test_a_template_that_makes_too_much_text(monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_TEXT_CHARS", 1000)
    with pytest.raises(ModelUnsafe, match="far more text"):
        render(Tokenizer("{% for a in range(2000) %}x{% endfor %}"), [], threading.Event())


def test_a_template_error_says_what_the_template_says():
    with pytest.raises(ModelUnsupported, match="only users may speak"):
        render(Tokenizer("{{ raise_exception('only users may speak') }}"), [], threading.Event())
