"""A retriever and a chat model on one engine: what is found in the prompt is injected, what is not is read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from pydantic import ValidationError
from tests.langchain.engines import BINS, FALCON, KEY, open_tiny

from langchain_nnm import NNMLLM, ChatNNM, NNMEmbeddings, NNMMiddleware, NNMRetriever, NNMVectorStore
from langchain_nnm._messages import to_engine
from nnm_core import NNM, FilterError, InvalidInputError, MemoryNotInjectedError

PROMPT = ChatPromptTemplate.from_template("{context}\n\nQuestion: {question}")


def join(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def rag(nnm: NNM, retriever: Runnable[str, list[Document]] | None = None, **options: Any) -> Runnable[str, AIMessage]:
    chat = ChatNNM(nnm=nnm, **{"max_tokens": 4, **options})
    return (
        {"context": (retriever or NNMRetriever(nnm=nnm, k=2)) | join, "question": RunnablePassthrough()} | PROMPT | chat
    )


def memories(message: Any) -> dict[str, str]:
    return message.response_metadata["nnm"]["memories"]


# -- the retriever ------------------------------------------------------------------------------------------------


def test_documents_are_plain(nnm: NNM) -> None:
    found = NNMRetriever(nnm=nnm, k=1).invoke("Who leads Falcon?")
    assert found == [Document(id="falcon", page_content=FALCON, metadata={"n": 2})]
    found[0].metadata["n"] = 3
    assert nnm.get("falcon")[0].metadata == {"n": 2}


def test_filters_are_per_retriever_or_per_call_and_never_fail_open(nnm: NNM) -> None:
    retriever = NNMRetriever(nnm=nnm, filter={"n": {"$gte": 2}})
    assert {d.id for d in retriever.invoke("the bins, the key, Falcon")} == {"falcon", "key"}
    assert [d.id for d in retriever.invoke("the bins, the key, Falcon", filter={"n": 1})] == ["bins"]
    with pytest.raises(FilterError):
        retriever.invoke("bins", filter={"n": {"$near": 1}})


async def test_the_asynchronous_retriever_finds_the_same(nnm: NNM) -> None:
    retriever = NNMRetriever(nnm=nnm)
    assert await retriever.ainvoke("Falcon", k=1) == retriever.invoke("Falcon", k=1)


# -- injection ----------------------------------------------------------------------------------------------------


def test_auto_reads_once_and_injects_from_then_on(nnm: NNM) -> None:
    chain = rag(nnm)
    first, second = chain.invoke("Who leads Falcon?"), chain.invoke("Who leads Falcon?")
    assert memories(first)["falcon"] == "read"
    assert set(memories(second).values()) == {"injected"}
    assert first.content == second.content
    assert first.usage_metadata["input_token_details"] == {"cache_read": 0}
    assert second.usage_metadata["input_token_details"]["cache_read"] >= len(FALCON)
    assert second.response_metadata["nnm"]["tier"] == "exact"


def test_fast_injects_at_once(nnm: NNM) -> None:
    message = rag(nnm, policy="fast").invoke("Who leads Falcon?")
    assert memories(message)["falcon"] == "injected"
    assert message.response_metadata["nnm"]["tier"] == "composed"


def test_every_way_of_running_gives_the_same_answer(nnm: NNM) -> None:
    chain = rag(nnm)
    question = "Who leads Falcon?"
    expected = chain.invoke(question)
    assert "".join(chunk.text for chunk in chain.stream(question)) == expected.text
    assert [message.text for message in chain.batch([question, question])] == [expected.text] * 2


async def test_every_asynchronous_way_gives_the_same_answer(nnm: NNM) -> None:
    chain = rag(nnm)
    question = "Who leads Falcon?"
    expected = chain.invoke(question)
    assert (await chain.ainvoke(question)).text == expected.text
    pieces = [chunk async for chunk in chain.astream(question)]
    assert "".join(chunk.text for chunk in pieces) == expected.text
    assert [m.text for m in await chain.abatch([question, question])] == [expected.text] * 2
    assert [bool(chunk.usage_metadata) for chunk in pieces].count(True) == 1
    assert memories(pieces[0] if len(pieces) == 1 else sum(pieces[1:], pieces[0]))["falcon"] == "injected"


def test_text_that_was_changed_is_read_and_strict_raises(nnm: NNM) -> None:
    shouting = NNMRetriever(nnm=nnm, k=1) | (lambda found: [Document(found[0].page_content.upper())])
    assert memories(rag(nnm, shouting).invoke("Who leads Falcon?")) == {}
    with pytest.raises(MemoryNotInjectedError, match="falcon"):
        rag(nnm, shouting, strict=True).invoke("Who leads Falcon?")


def test_memories_can_be_named_in_a_call(nnm: NNM) -> None:
    chat = ChatNNM(nnm=nnm, max_tokens=4)
    message = chat.invoke("Who leads?", memories=["falcon", "bins"])
    assert memories(message) == {"falcon": "injected", "bins": "read"}
    assert message.text == nnm.answer("Who leads?", memories=["falcon", "bins"], max_tokens=4).text


def test_modes_for_comparison(nnm: NNM) -> None:
    injected, read, bare = (rag(nnm, mode=mode).invoke("Who leads Falcon?") for mode in ("inject", "read", "bare"))
    assert injected.text == read.text
    assert set(memories(read).values()) == {"read"}
    assert memories(bare) == {}


# -- scopes ---------------------------------------------------------------------------------------------------------


def test_leases_count_in_their_own_scope_only(nnm: NNM) -> None:
    mine, other = NNMRetriever(nnm=nnm, k=1, scope="mine"), ChatNNM(nnm=nnm, max_tokens=1, scope="other")
    mine.invoke("Falcon")
    assert memories(other.invoke(FALCON)) == {}
    assert set(memories(other.invoke(FALCON, scope="mine"))) == {"falcon"}


@pytest.mark.parametrize("place", ["configurable", "metadata"])
def test_the_scope_of_a_run_is_in_its_config(nnm: NNM, place: str) -> None:
    chain = rag(nnm)
    config: Any = {place: {"nnm_scope": "run-7"}}
    assert "falcon" in memories(chain.invoke("Who leads Falcon?", config))
    assert "falcon" in memories(list(chain.stream("Who leads Falcon?", config))[-1])
    assert nnm.leases.find(FALCON) == (FALCON,)
    assert nnm.leases.find(FALCON, scope="run-7") != (FALCON,)


@pytest.mark.parametrize("place", ["configurable", "metadata"])
async def test_the_scope_is_in_the_config_of_a_single_call_too(nnm: NNM, place: str) -> None:
    config: Any = {place: {"nnm_scope": "run-7"}}
    retriever, chat, llm = NNMRetriever(nnm=nnm, k=1), ChatNNM(nnm=nnm, max_tokens=1), NNMLLM(nnm=nnm, max_tokens=1)
    retriever.invoke("Who leads Falcon?", config)
    assert nnm.leases.find(FALCON) == (FALCON,)
    assert set(memories(chat.invoke(FALCON, config))) == {"falcon"}
    assert set(memories(await chat.ainvoke(FALCON, config))) == {"falcon"}
    assert set(memories(list(chat.stream(FALCON, config))[-1])) == {"falcon"}
    assert set(memories([chunk async for chunk in chat.astream(FALCON, config)][-1])) == {"falcon"}
    asked = await asyncio.gather(chat.abatch([FALCON, FALCON], config), chat.abatch([FALCON]))
    assert [set(memories(message)) for message in asked[0]] == [{"falcon"}] * 2
    assert memories(asked[1][0]) == {}
    assert await llm.ainvoke(FALCON, config) == llm.invoke(FALCON, config)
    await NNMRetriever(nnm=nnm, k=1).ainvoke("Where are the bins?", config)
    assert nnm.leases.find(BINS) == (BINS,)
    for kind in ("similarity", "mmr", "similarity_score_threshold"):
        nnm.leases.drop(["key"])
        threshold = {"score_threshold": 0.0} if kind == "similarity_score_threshold" else {}
        store = NNMVectorStore(nnm).as_retriever(search_type=kind, search_kwargs={"k": 1, **threshold})
        for found in (
            store.invoke("Where is the spare key?", config),
            await store.ainvoke("Where is it, the key?", config),
        ):
            assert [document.id for document in found] == ["key"]
        assert nnm.leases.find(KEY) == (KEY,)
        assert nnm.leases.find(KEY, scope="run-7") != (KEY,)
        store.invoke("Where is the spare key?", config, scope="other")
        assert nnm.leases.find(KEY, scope="other") != (KEY,)


# -- what is no engine, and what is no field --------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, "nnm-mini"])
@pytest.mark.parametrize("part", [ChatNNM, NNMLLM, NNMRetriever, NNMEmbeddings, NNMVectorStore, NNMMiddleware])
def test_what_is_no_engine_is_refused_at_once(part: Any, nothing: Any) -> None:
    with pytest.raises(ValueError, match="must be an open engine") as caught:
        part(nnm=nothing)
    assert "NNM.open" in str(caught.value)


@pytest.mark.parametrize("part", [ChatNNM, NNMLLM, NNMRetriever, NNMEmbeddings])
def test_a_misspelt_field_is_refused(nnm: NNM, part: Any) -> None:
    with pytest.raises(ValueError, match=f"scop: not a field of {part.__name__}"):
        part(nnm=nnm, scop="mine")
    assert ChatNNM(nnm=nnm, timeout=60, max_retries=2, stop_sequences=["."]).stop == ["."]  # others have these


# -- artifacts ------------------------------------------------------------------------------------------------------


def tool_prompt(content: str, artifact: Any) -> list[Any]:
    return [HumanMessage("Who leads?"), ToolMessage(content, tool_call_id="1", artifact=artifact)]


def test_artifacts_of_tools_say_what_to_look_for(nnm: NNM) -> None:
    chat = ChatNNM(nnm=nnm, max_tokens=1)
    prompt = tool_prompt(f"Found: {FALCON}", [Document(FALCON, id="falcon")])
    assert set(memories(chat.invoke(prompt))) == {"falcon"}
    assert set(memories(chat.invoke(tool_prompt(FALCON, Document(FALCON, id="falcon"))))) == {"falcon"}
    assert nnm.leases.find(FALCON) == (FALCON,)  # for this prompt only


@pytest.mark.parametrize(
    "artifact",
    [
        [Document(FALCON, id="nobody")],
        [Document(FALCON, id="bins")],
        [Document("Something else", id="falcon")],
        [Document(FALCON)],
        [{"id": "falcon", "page_content": FALCON}],
        "falcon",
        7,
    ],
)
def test_artifacts_that_do_not_fit_do_nothing(nnm: NNM, artifact: Any) -> None:
    assert memories(ChatNNM(nnm=nnm, max_tokens=1).invoke(tool_prompt(FALCON, artifact))) == {}


def test_artifacts_of_older_versions_do_nothing(nnm: NNM) -> None:
    nnm.add("Paul leads the Falcon project.", ids="falcon")
    prompt = tool_prompt(FALCON, [Document(FALCON, id="falcon")])
    assert memories(ChatNNM(nnm=nnm, max_tokens=1).invoke(prompt)) == {}


# -- messages -------------------------------------------------------------------------------------------------------


def sent(monkeypatch: pytest.MonkeyPatch, nnm: NNM, messages: list[Any]) -> list[tuple[str, str]]:
    seen: list[Any] = []
    stream = nnm.stream
    monkeypatch.setattr(nnm, "stream", lambda prompt, **options: (seen.extend(prompt), stream(prompt, **options))[1])
    ChatNNM(nnm=nnm, max_tokens=1).invoke(messages)
    return _plain(seen)


def test_messages_of_any_order_fit_the_template(nnm: NNM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [
        AIMessage("Hello!"),
        HumanMessage("a", name="anna"),
        SystemMessage("s"),
        HumanMessage([{"type": "text", "text": "b"}, "c"]),
        AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "d"}]),
        ChatMessage("e", role="user"),
        ToolMessage("f", tool_call_id="1"),
        ToolMessage("g", tool_call_id="2"),
        SystemMessage("t"),
    ]
    before = [("system", "s\n\nt"), ("assistant", "Hello!"), ("user", "a\n\nbc"), ("assistant", "d")]
    assert _plain(to_engine(prompt)) == [*before, ("user", "e"), ("tool", "f"), ("tool", "g")]
    # This model's template knows no tools: their results become context of the question.
    assert sent(monkeypatch, nnm, prompt) == [*before, ("user", "Context:\nf\n\ng\n\nQuestion: e")]


def test_results_of_tools_for_models_that_know_none() -> None:
    call = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])
    result = ToolMessage("r", tool_call_id="1")
    asked = [HumanMessage("q"), call, result, AIMessage("a"), HumanMessage("p"), call, result]
    assert _plain(to_engine(asked, knows_tools=False)) == [
        ("user", "Context:\nr\n\nQuestion: q"),
        ("assistant", "a"),
        ("user", "Context:\nr\n\nQuestion: p"),
    ]
    assert _plain(to_engine([result], knows_tools=False)) == [("user", "Context:\nr")]
    with pytest.raises(InvalidInputError, match="no messages"):
        to_engine([call], knows_tools=False)


def _plain(messages: list[Any]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def test_what_is_not_text_is_refused_and_not_dropped(nnm: NNM) -> None:
    picture = HumanMessage(
        [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
    )
    with pytest.raises(InvalidInputError, match="image_url"):
        ChatNNM(nnm=nnm).invoke([picture])


# -- options --------------------------------------------------------------------------------------------------------


def test_options_of_a_call_win(nnm: NNM) -> None:
    chat = ChatNNM(nnm=nnm, max_tokens=8, temperature=1.0, seed=1)
    assert chat.invoke("Hello", max_tokens=2).usage_metadata["output_tokens"] == 2
    assert chat.invoke("Hello").text == chat.invoke("Hello").text
    assert chat.invoke("Hello", seed=2).text != chat.invoke("Hello").text
    assert chat.invoke("Hello", temperature=0.0).text == nnm.answer([_user("Hello")], max_tokens=8).text


def _user(text: str) -> Any:
    from nnm_core import Message

    return Message("user", text)


def test_stop_strings_end_the_answer_and_are_cut(nnm: NNM) -> None:
    whole = ChatNNM(nnm=nnm, max_tokens=12).invoke("Hello").text
    stop = whole[2:5]
    expected = whole[: whole.index(stop)]
    assert ChatNNM(nnm=nnm, max_tokens=12, stop=stop).invoke("Hello").text == expected
    chat = ChatNNM(nnm=nnm, max_tokens=12, stop_sequences=["nothing of this kind"])
    assert chat.invoke("Hello").text == whole
    assert "".join(chunk.text for chunk in chat.stream("Hello", stop=[stop])) == expected


@pytest.mark.parametrize(
    ("options", "match"),
    [({"model": "gpt-7"}, "gpt-7"), ({"frequency_penalty": 1.0}, "frequency_penalty"), ({"max_tokens": 0}, "max_tok")],
)
def test_options_that_mean_nothing_are_named(nnm: NNM, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        ChatNNM(nnm=nnm).invoke("Hello", **options)


def test_the_engine_and_its_model_are_checked(nnm: NNM) -> None:
    assert ChatNNM(nnm=nnm).model == ChatNNM(nnm=nnm, model_name="tiny-qwen3").model == "tiny-qwen3"
    with pytest.raises(ValidationError, match="gpt-7"):
        ChatNNM(nnm=nnm, model="gpt-7")
    with pytest.raises(ValidationError, match="engine"):
        ChatNNM(nnm="nnm-mini")


def test_tokens_are_counted_with_the_models_own_tokenizer(nnm: NNM) -> None:
    assert ChatNNM(nnm=nnm).get_num_tokens("bins") == 4


# -- caches ---------------------------------------------------------------------------------------------------------


def test_a_shared_cache_mixes_neither_options_nor_namespaces_nor_versions(nnm: NNM) -> None:
    cache = InMemoryCache()
    ask = {"memories": ["falcon"]}

    def hit(engine: NNM, **options: Any) -> bool:
        before = len(cache._cache)
        ChatNNM(nnm=engine, cache=cache, **{"max_tokens": 2, **options}).invoke("Who?", **ask)
        return len(cache._cache) == before

    assert not hit(nnm)
    assert hit(nnm)
    others: list[dict[str, Any]] = [{"max_tokens": 3}, {"temperature": 1.0}, {"top_p": 0.5}, {"top_k": 3}, {"seed": 1}]
    others += [{"policy": "fast"}, {"composer": "concatenate"}, {"order": "canonical"}, {"mode": "read"}]
    others += [{"strict": True}, {"stop": ["x"]}]
    for options in others:
        assert not hit(nnm, **options)
        assert hit(nnm, **options)
    for engine_options in ({"codec": "int8"}, {"system": "Be brief."}):
        with open_tiny(**engine_options) as other:
            other.add([FALCON], ids=["falcon"])
            assert not hit(other)
    with open_tiny(namespace="other") as other:
        other.add([FALCON], ids=["falcon"])
        assert not hit(other)
    nnm.add("Paul leads the Falcon project.", ids="falcon")
    assert not hit(nnm)
    nnm.add(KEY, ids="falcon")
    nnm.add(FALCON, ids="falcon")
    assert not hit(nnm)  # the same words, another version


def test_parsers_and_bindings_work(nnm: NNM) -> None:
    chain = rag(nnm) | StrOutputParser()
    assert isinstance(chain.invoke("Who leads Falcon?"), str)
    bound = ChatNNM(nnm=nnm).bind(max_tokens=1)
    assert bound.invoke(BINS).usage_metadata["output_tokens"] == 1
