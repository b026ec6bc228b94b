"""Prompts: the ids that a policy is asked, which are those that SFT reads before the answer; their rows; bad input."""
# ruff: noqa: E501  (tables of literal messages)

import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizers import CHATML, FAMILIES, byte_tokenizer, family_tokenizer, sentencepiece_tokenizer
from data_files import jsonl, message_of, write, write_parquet
from tool_loop import TOOL_LOOP
from transformers import PreTrainedTokenizerFast

from relax.data import EncodingOptions, Row, load_rows, split_rows, tokenize_row
from relax.data.prompts import PromptDataset, PromptWalk, encode_prompt, encode_prompts, reward_columns
from relax.errors import UserError

PLAIN, WITH_BOS, CHAT = byte_tokenizer(), byte_tokenizer(adds_bos=True), family_tokenizer("chatml")
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
TWO_TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, USER, ANSWER]
TOOLS = [{"type": "function", "function": {"name": "clock", "description": "Tells the time.", "parameters": {"type": "object", "properties": {}}}}]  # fmt: skip
TAKE_TOOLS = ("llama3_1", "mistral_v3", "qwen2_5", "qwen3", "gpt_oss")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read_by_sft(row: Row, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens before the last answer, by SFT's loss mask."""
    sample = tokenize_row(row, tokenizer, EncodingOptions(train_on="last"))
    return [int(token) for token in sample.input_ids[: int(sample.loss_mask.argmax())]]


def asked(row: Row, tokenizer: PreTrainedTokenizerFast = CHAT, **settings: Any) -> str:
    """The text of the prompt's tokens."""
    text: str = tokenizer.decode(encode_prompt(row, tokenizer, **settings).ids)
    return text


def questions(*lengths: int) -> list[dict[str, Any]]:
    """Rows whose prompts have so many tokens, each another letter."""
    return [{"prompt": chr(ord("a") + n % 26) * length, "answer": n} for n, length in enumerate(lengths)]


class TestAsSftReadsThem:
    @pytest.mark.parametrize(
        "tokenizer", [PLAIN, WITH_BOS, sentencepiece_tokenizer(), byte_tokenizer(merges=[("=", "4"), ("+", "2")])]
    )
    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": "2+2=", "completion": "4"},
            {"prompt": "<s>2+2=", "completion": "4"},
            {"prompt": " é 😀\n", "completion": " x"},
            {"instruction": "Add.", "input": "2+2", "output": "4"},
            {"instruction": "Add 2+2.", "output": "4"},
        ],
    )
    def test_text(self, row: Row, tokenizer: PreTrainedTokenizerFast) -> None:
        assert encode_prompt(row, tokenizer).ids == read_by_sft(row, tokenizer)

    def test_a_tokenizer_that_opens_texts_opens_prompts_once(self) -> None:
        assert asked({"prompt": "2+2="}, WITH_BOS) == asked({"prompt": "<s>2+2="}, WITH_BOS) == "<s>2+2="
        assert asked({"prompt": "2+2="}, PLAIN) == "2+2="

    @pytest.mark.parametrize("marked", [False, True], ids=["published", "marked"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_conversations(self, family: str, marked: bool) -> None:
        tokenizer = family_tokenizer(family, marked=marked)
        system = [] if family in ("gemma", "mistral_v3") else [SYSTEM]  # their templates refuse or drop it
        for messages in ([*system, *TWO_TURNS], [*system, *TWO_TURNS[:2]], TWO_TURNS):
            row = {"messages": messages}
            found = encode_prompt(row, tokenizer)
            assert found.ids == read_by_sft(row, tokenizer)
            assert found.ids == tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
            assert found.prompt == messages[:-1]
            assert encode_prompt({"prompt": messages[:-1]}, tokenizer).ids == found.ids

    @pytest.mark.parametrize("family", TAKE_TOOLS)
    def test_tools_and_calls(self, family: str) -> None:
        tokenizer = family_tokenizer(family)
        for length in (2, 4):  # the answer is a call, or follows the result of one
            row = {"messages": TOOL_LOOP[:length], "tools": TOOLS}
            ids = encode_prompt(row, tokenizer).ids
            assert ids == read_by_sft(row, tokenizer)
            assert encode_prompt({"prompt": TOOL_LOOP[: length - 1], "tools": TOOLS}, tokenizer).ids == ids
        assert "Tells the time." in tokenizer.decode(ids)

    def test_a_token_over_the_border_of_the_answer_is_not_asked(self) -> None:
        """Generation never sees "\\n4" as one token, so training must not read one either."""
        tokenizer = byte_tokenizer(CHATML, merges=[("Ċ", "4")])
        row = {"messages": [USER, ANSWER]}
        ids = encode_prompt(row, tokenizer).ids
        assert ids == read_by_sft(row, tokenizer)
        assert tokenizer.decode(ids) == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"


class TestFormats:
    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": [USER]},
            {"prompt": [USER], "completion": [ANSWER]},
            {"prompt": [USER], "completion": None, "answer": "4"},
            {"messages": [USER, ANSWER]},
            {"messages": [USER]},
            {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
            {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "5"}]},
            {"prompt": "2+2?", "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "5"}]},
        ],
    )
    def test_one_conversation_in_every_form(self, row: Row) -> None:
        found = encode_prompt(row, CHAT)
        assert CHAT.decode(found.ids) == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        assert (found.prompt, found.row) == ([USER], row)

    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": "2+2="},
            {"prompt": "2+2=", "completion": ""},
            {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
            {"prompt": "2+2=", "text": "unread", "input_ids": [1]},
        ],
    )
    def test_one_text_in_every_form(self, row: Row) -> None:
        found = encode_prompt(row, CHAT)
        assert (CHAT.decode(found.ids), found.prompt, found.row) == ("2+2=", "2+2=", row)

    def test_sharegpt_may_keep_its_system_turn_in_a_column(self) -> None:
        turns = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
        assert encode_prompt({"conversations": turns, "system": "Be brief."}, CHAT).prompt == [SYSTEM, USER]

    def test_a_conversation_that_ends_with_a_question_awaits_its_answer(self) -> None:
        assert encode_prompt({"messages": TWO_TURNS[:3]}, CHAT).prompt == TWO_TURNS[:3]

    def test_a_format_can_be_named(self) -> None:
        row = {"prompt": "2+2=", "messages": [USER, ANSWER]}
        assert encode_prompt(row, CHAT).prompt == [USER], "as for SFT, messages come first"
        assert encode_prompt(row, CHAT, data_format="prompt").prompt == "2+2="


class TestChat:
    def test_text_becomes_a_users_turn_and_stays_text_for_rewards(self) -> None:
        row = {"prompt": "2+2?", "answer": "4"}
        assert asked(row, as_chat=True) == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        assert encode_prompt(row, CHAT, as_chat=True).prompt == "2+2?"

    @pytest.mark.parametrize("row", [{"prompt": "2+2?"}, {"prompt": [USER]}, {"prompt": [SYSTEM, USER]}])
    def test_a_system_prompt_stands_before_text_and_messages(self, row: Row) -> None:
        whole = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        assert asked(row, system_prompt="Be brief.") == whole
        assert encode_prompt(row, CHAT, system_prompt="Be brief.").prompt == row["prompt"]

    def test_an_empty_system_prompt_takes_the_place_of_the_templates_own(self) -> None:
        qwen = family_tokenizer("qwen2_5")
        assert "You are Qwen" in asked({"prompt": "a"}, qwen, as_chat=True)
        assert "You are Qwen" not in asked({"prompt": "a"}, qwen, system_prompt="")

    def test_an_instruction_is_asked_without_the_words_around_it(self) -> None:
        row = {"instruction": "Add.", "input": "2+2", "output": "4"}
        assert asked(row, as_chat=True) == "<|im_start|>user\nAdd.\n\n2+2<|im_end|>\n<|im_start|>assistant\n"
        assert encode_prompt({**row, "input": ""}, CHAT, as_chat=True).prompt == "Add."
        assert asked(row).endswith("### Input:\n2+2\n\n### Response:")

    def test_text_can_come_with_tools(self) -> None:
        qwen = family_tokenizer("qwen2_5")
        messages = encode_prompt({"prompt": [TOOL_LOOP[0]], "tools": TOOLS}, qwen)
        assert encode_prompt({"prompt": "Time?", "tools": TOOLS}, qwen, as_chat=True).ids == messages.ids

    def test_a_setting_without_effect_is_told(self) -> None:
        with pytest.warns(
            UserWarning, match="^training data: --prompts_as_chat has no effect: the prompts are messages"
        ):
            encode_prompts([{"prompt": [USER]}], CHAT, as_chat=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encode_prompts([{"prompt": [USER]}, {"prompt": "a"}], CHAT, as_chat=True)

    def test_a_template_that_writes_the_date_is_told_of_once(self) -> None:
        dated = byte_tokenizer("{{ strftime_now('%d %b %Y') }}" + CHATML)
        with pytest.warns(UserWarning, match="the chat template writes today's date") as told:
            encode_prompts([{"prompt": [USER]}] * 3, dated)
        assert len(told) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encode_prompts([{"prompt": "a"}], dated)


class TestRows:
    def test_reward_functions_find_every_column_under_the_name_they_ask_for(self) -> None:
        rows = [{"question": "2+2=", "solution": "4", "level": 1}]
        columns = {"prompt": "question", "answer": "solution"}
        found = encode_prompts(rows, PLAIN, columns=columns)[0]
        assert found.row == {"prompt": "2+2=", "answer": "4", "level": 1}
        assert reward_columns(rows, columns) == found.row.keys()

    def test_rows_stay_where_they_are(self) -> None:
        write("a.jsonl", jsonl([*questions(3, 900, 5)]))
        rows = load_rows("a.jsonl")
        data = encode_prompts(rows, PLAIN, max_length=10, max_dropped_share=0.5)
        assert [data[i].row["answer"] for i in (1, 0, 1)] == [2, 0, 2]
        assert [(data[i].prompt, data[i].ids) for i in range(2)] == [
            (text, PLAIN(text)["input_ids"]) for text in ("aaa", "ccccc")
        ]
        assert data.lengths.tolist() == [3, 5]
        copy: PromptDataset = pickle.loads(pickle.dumps(data))
        assert (copy[1], copy.fingerprint) == (data[1], data.fingerprint)
        for index in (2, -1):
            with pytest.raises(IndexError, match=f"prompt {index} of a data set of 2"):
                data[index]

    def test_memory_does_not_grow_with_what_the_rows_hold(self) -> None:
        class Counted(list[Row]):
            read = 0

            def __getitem__(self, index: Any) -> Any:
                type(self).read += 1
                return {"prompt": "ab", "solution": "x" * 1000, "n": index}

            def __iter__(self) -> Iterator[Row]:
                raise AssertionError("rows are read by position")

        data = encode_prompts(Counted([{}] * 600), PLAIN)
        assert (len(data), data.tokens.nbytes, Counted.read) == (600, 600 * 2 * 4, 601), (
            "the first one tells the format"
        )
        assert data[599].row["n"] == 599
        assert data.ids(599) == PLAIN("ab")["input_ids"]
        assert Counted.read == 602

    def test_a_split_and_a_dataset_are_rows_too(self) -> None:
        import datasets

        rows = [{"prompt": [{"role": "user", "content": f"row {n}"}], "n": n} for n in range(20)]
        _, held_out = split_rows(rows, 5, seed=0)
        data = encode_prompts(held_out, CHAT)
        assert [data[i].row["n"] for i in range(5)] == held_out.indices.tolist()
        arrow = encode_prompts(datasets.Dataset.from_list(rows), CHAT)
        assert arrow.fingerprint == encode_prompts(rows, CHAT).fingerprint
        assert arrow[3] == encode_prompts(rows, CHAT)[3]

    def test_a_dataset_gives_objects_without_the_keys_of_other_rows(self) -> None:
        """Arrow fills them in with nulls, which a reward function would take for what the row says."""
        import datasets

        rows = [{"prompt": "a", "truth": {"number": 4}}, {"prompt": "b", "truth": {"text": "x"}}]
        data = encode_prompts(datasets.Dataset.from_list(rows), PLAIN)
        assert [data[i].row for i in range(2)] == rows

    def test_parquet(self) -> None:
        name = write_parquet("a.parquet", [{"prompt": [USER], "reward_model": {"ground_truth": "4"}}])
        found = encode_prompts(load_rows(name), CHAT)[0]
        assert (found.prompt, found.row["reward_model"]["ground_truth"]) == ([USER], "4")

    def test_the_fingerprint_is_of_ids_and_order(self) -> None:
        one, other = {"prompt": "ab", "answer": "1"}, {"prompt": "c", "answer": "2"}
        name = encode_prompts([one, other], PLAIN).fingerprint
        assert (
            encode_prompts([{"question": "ab"}, {"question": "c"}], PLAIN, columns={"prompt": "question"}).fingerprint
            == name
        )
        assert (
            encode_prompts([one, {"prompt": "x" * 9}, other], PLAIN, max_length=5, max_dropped_share=1).fingerprint
            == name
        )
        for changed in ([other, one], [one], [{"prompt": "a"}, {"prompt": "bc"}], [{"prompt": "ab"}, {"prompt": "d"}]):
            assert encode_prompts(changed, PLAIN).fingerprint != name
        assert encode_prompts([one, other], WITH_BOS).fingerprint != name


class TestLengths:
    def test_long_prompts_are_dropped_and_counted(self) -> None:
        data = encode_prompts(questions(*range(1, 101)), PLAIN, max_length=97)
        assert (len(data), data.report.rows, data.report.too_long, data.report.kept) == (97, 100, 3, 97)
        assert data.lengths.max() == 97
        assert data.describe() == (
            "97 prompts of 4,753 tokens (p50 49, p95 93, longest 97); 3 rows dropped (longer than --max_prompt_length=97)"
        )

    def test_without_a_limit_none_is(self) -> None:
        data = encode_prompts(questions(1, 5000), PLAIN)
        assert data.describe() == "2 prompts of 5,001 tokens (p50 1, p95 5,000, longest 5,000)"

    def test_more_than_the_allowed_share_is_an_error(self) -> None:
        rows = questions(3, 4, 30, 40)
        with pytest.raises(UserError) as error:
            encode_prompts(rows, PLAIN, max_length=10)
        assert message_of(error) == (
            "training data: 2 of 4 prompts are longer than --max_prompt_length=10 (the longest has 40 tokens), more "
            "than --max_dropped_share=0.05 allows; raise one of the two"
        )
        assert len(encode_prompts(rows, PLAIN, max_length=10, max_dropped_share=0.5)) == 2

    def test_nothing_left_is_an_error_whatever_the_share(self) -> None:
        with pytest.raises(UserError) as error:
            encode_prompts(questions(30, 40), PLAIN, max_length=10, max_dropped_share=1.0, where="held-out data")
        assert message_of(error) == (
            "held-out data: all 2 prompts are longer than --max_prompt_length=10, the shortest has 30 tokens; raise it"
        )


class TestBadInput:
    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([], "training data: no rows"),
            ([{"question": "a", "answer": "b"}], "training data:row 1: no column holds a prompt, the columns are ['answer', 'question']; say which one does with --columns='{prompt: question}'"),
            ([{"text": "a"}], "training data:row 1: no column holds a prompt, the columns are ['text']; say which one does with --columns='{prompt: text}'"),
            ([{"promt": "a", "input": "b"}], "training data:row 1: no column holds a prompt, the columns are ['input', 'promt']; say which one does with --columns='{prompt: promt}'"),
            ([{"input_ids": [1, 2]}], "training data:row 1: no column holds a prompt, the columns are ['input_ids']; say which one does with --columns='{prompt: YOUR_COLUMN}'"),
            ([{"prompt": "a"}, {"question": "b"}], "training data:row 2: no 'prompt' in this row, it has ['question']"),
            ([{"prompt": "a"}, {"prompt": ""}], "training data:row 2: 'prompt' must be a string or a list of messages, got an empty str"),
            ([{"prompt": None}], "training data:row 1: 'prompt' must be a string or a list of messages, got nothing (null)"),
            ([{"prompt": "a\ud800"}], "training data:row 1: the text holds half of a surrogate pair ('\\ud800'), which is not Unicode text"),
            ([{"prompt": [ANSWER]}], "training data:row 1: 'prompt' ends with an assistant turn: a prompt ends before the answer"),
            ([{"messages": [ANSWER]}], "training data:row 1: 'messages' has no turn before the answer: there is nothing to ask"),
            ([{"chosen": "ab", "rejected": "ac"}], "training data:row 1: 'chosen' and 'rejected' have no prompt apart: give it a column of its own, 'prompt'"),
            (["a"], "training data:row 1: a row must be a mapping from column to value, got str"),
        ],
    )  # fmt: skip
    def test_is_explained_in_one_line(self, rows: Any, message: str) -> None:
        with pytest.raises(UserError) as error:
            encode_prompts(rows, CHAT)
        assert message_of(error) == message

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"columns": {"prompt": "qestion"}}, "training data:row 1: --columns: 'prompt' is to be 'qestion', and the row has no such column, it has ['prompt', 'question']; did you mean 'question'?"),
            ({"columns": {"prompt": "question"}}, "training data:row 1: --columns: 'prompt' is to be 'question', and the row has a column 'prompt' already; take one of the two out of the data"),
            ({"data_format": "text"}, "training data:row 1: --data_format=text needs a column 'text'"),
            ({"data_format": "tekst"}, "training data:row 1: --data_format must be one of"),
            ({"data_format": "text", "columns": {"text": "question"}}, "training data:row 1: --data_format=text has no prompts, those that have are messages, conversations, preference, alpaca, prompt_completion, prompt"),
            ({"max_length": 0}, "--max_prompt_length must be above 0, got 0"),
            ({"max_dropped_share": 1.5}, "--max_dropped_share must lie between 0 and 1, got 1.5"),
        ],
    )  # fmt: skip
    def test_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError) as error:
            encode_prompts([{"prompt": "a", "question": "b"}], CHAT, **settings)
        assert message_of(error).startswith(message)

    def test_a_file_is_named_with_its_line(self) -> None:
        write("a.jsonl", jsonl([{"prompt": "a"}]) + "\n" + jsonl([{"prompt": 3}]))
        with pytest.raises(UserError, match=r"^a\.jsonl:3: 'prompt' must be a string or a list of messages, got int$"):
            encode_prompts(load_rows("a.jsonl"), PLAIN)
        write("b.jsonl", jsonl([{"prompt": "a"}]) + "{broken\n")
        with pytest.raises(UserError, match=r"^b\.jsonl:2: "):
            encode_prompts(load_rows("b.jsonl"), PLAIN)

    def test_a_prompt_without_a_token(self) -> None:
        from tokenizers import Tokenizer, models, normalizers

        core = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
        core.normalizer = normalizers.Replace("?", "")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
        with pytest.raises(UserError) as error:
            encode_prompts([{"prompt": "a"}, {"prompt": "???"}], tokenizer)
        assert message_of(error) == (
            "training data:row 2: the prompt is empty once tokenized: the tokenizer has no token for anything in '???'"
        )

    def test_a_missing_template_is_no_rows_fault(self) -> None:
        with pytest.raises(UserError) as error:
            encode_prompts([{"prompt": [USER]}], PLAIN)
        assert message_of(error) == (
            "the rows are chat messages and the tokenizer has no chat template: give another template with --chat_template=FILE"
        )
        for settings, flag in (({"as_chat": True}, "prompts_as_chat"), ({"system_prompt": "S"}, "system_prompt")):
            with pytest.raises(UserError) as error:
                encode_prompts([{"prompt": "a"}], PLAIN, **settings)
            assert message_of(error) == (
                f"--{flag} needs a chat template and the tokenizer has none; give another template with --chat_template=FILE"
            )

    def test_two_system_turns(self) -> None:
        with pytest.raises(UserError) as error:
            encode_prompts([{"prompt": [USER]}, {"prompt": [SYSTEM, USER]}], CHAT, system_prompt="Be long.")
        assert message_of(error) == (
            "training data:row 2: the prompt begins with a system turn of its own, which says something else than "
            "--system_prompt; leave the flag or those turns out"
        )

    @pytest.mark.parametrize(
        ("family", "row", "message"),
        [
            ("chatml", {"prompt": [USER], "tools": TOOLS}, "the chat template does not show the row's tools to the model"),
            ("gemma", {"prompt": [SYSTEM, USER]}, "the chat template fails on these messages"),
            ("llama3", {"prompt": TOOL_LOOP[:3]}, "the chat template leaves out a tool call of message 2"),
        ],
    )  # fmt: skip
    def test_what_the_template_leaves_out_is_never_asked_silently(self, family: str, row: Row, message: str) -> None:
        with pytest.raises(UserError, match=f"^training data:row 1: {re.escape(message)}") as error:
            encode_prompts([row], family_tokenizer(family))
        message_of(error)


class TestWalk:
    def test_each_pass_asks_every_prompt_once_in_an_order_of_its_own(self) -> None:
        walk = PromptWalk(10, seed=3)
        passes = [walk.indices(10 * k, 10) for k in range(4)]
        assert all(sorted(one) == list(range(10)) for one in passes)
        assert len({*map(tuple, passes)}) == 4
        assert PromptWalk(10, seed=3).indices(0, 40) == [index for one in passes for index in one]
        assert PromptWalk(10, seed=4).indices(0, 10) != passes[0]

    def test_any_place_can_be_gone_to_at_once(self) -> None:
        walk = PromptWalk(7, seed=0)
        whole = walk.indices(0, 60)
        for start, count in ((0, 1), (6, 2), (13, 30), (7, 7), (59, 1), (20, 0)):
            assert walk.indices(start, count) == whole[start : start + count]
        assert PromptWalk(1, seed=0).indices(5, 3) == [0, 0, 0]

    def test_a_mixture_is_walked_by_its_shares(self) -> None:
        write("a.jsonl", jsonl([{"prompt": f"a{n}"} for n in range(30)]))
        write("b.jsonl", jsonl([{"messages": [{"role": "user", "content": f"b{n}"}]} for n in range(10)]))
        data = encode_prompts(load_rows("a.jsonl:0.25,b.jsonl:0.75"), CHAT)
        assert [data[i].row.keys() for i in (29, 30)] == [{"prompt"}, {"messages"}]
        walk = data.walk(seed=0)
        for one in (walk.indices(40 * k, 40) for k in range(3)):
            assert np.bincount([index >= 30 for index in one]).tolist() == [10, 30], "of 40 prompts a pass"
        drawn = [index for index in walk.indices(0, 120) if index < 30]
        assert sorted(drawn) == list(range(30)), "no prompt comes again before each has come once"
        even = encode_prompts(load_rows("a.jsonl:0.5,b.jsonl:0.5"), CHAT)
        assert even.fingerprint != data.fingerprint, "other shares are another order"
        assert reward_columns(load_rows("a.jsonl:0.25,b.jsonl:0.75")) == {"prompt", "messages"}

    def test_a_part_of_a_mixture_keeps_its_prompts_where_others_are_dropped(self) -> None:
        write("a.jsonl", jsonl(questions(1, 90, 90, 2)))
        write("b.jsonl", jsonl([{"messages": [USER]}] * 4))
        _, some = split_rows(load_rows("a.jsonl:0.5,b.jsonl:0.5"), 7, seed=1)
        data = encode_prompts(some, CHAT, max_length=80, max_dropped_share=0.5)
        asked_for = [data[i].row for i in range(len(data))]
        assert asked_for == [row for row in some if len(row.get("prompt", "")) < 80]
        assert data.parts is not None
        assert data.parts.tolist() == [int("messages" in row) for row in asked_for]

    def test_a_part_of_a_mixture_that_gives_no_prompt_is_refused(self) -> None:
        write("a.jsonl", jsonl(questions(1, 2, 3)))
        write("b.jsonl", jsonl(questions(90)))
        data = encode_prompts(load_rows("a.jsonl:0.5,b.jsonl:0.5"), PLAIN, max_length=10, max_dropped_share=0.5)
        with pytest.raises(UserError, match=r"^b\.jsonl: 0 rows to train on and a share of 0\.5"):
            data.walk(seed=0)

    def test_files_one_behind_the_other_are_one_data_set(self) -> None:
        write("a.jsonl", jsonl([{"prompt": "a"}]))
        write("b.jsonl", jsonl([{"messages": [USER]}]))
        data = encode_prompts(load_rows("a.jsonl,b.jsonl"), CHAT)
        assert [data[i].prompt for i in range(2)] == ["a", [USER]]
        assert sorted(data.walk(seed=0).indices(0, 2)) == [0, 1]
