import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import huggingface_hub
import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sdpo_jax import hub
from sdpo_jax.data.tokenizer import Tokenizer

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
{%- if enable_thinking is defined and not enable_thinking %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}"""
OPENS = CHATML.replace("</think>\\n\\n", "").replace("not enable", "enable")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = [*SPECIAL, "<think>", "</think>"]
TEXTS = [
    "",
    "hello  world \n\n\t!",
    "  leading, trailing  ",
    "don't clean up , this .",
    "naïve e\u0301 ≠ 𝒳 <unk> <s> \x00",
]


def unigram() -> Backend:
    """Letters, a few words, and bytes for everything else."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["▁", "hello", "▁world", *map(chr, range(33, 127))]
    scores = [
        ("<unk>", 0.0),
        *[(b, -20.0) for b in bytes_],
        *[(p, -5.0) for p in pieces],
    ]
    backend = Backend(models.Unigram(scores, unk_id=0, byte_fallback=True))
    spaces = {"prepend_scheme": "never", "split": False}
    backend.pre_tokenizer = pre_tokenizers.Metaspace(**spaces)
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(**spaces), decoders.Fuse()]
    )
    return backend


def byte_level() -> Backend:
    """Bytes without merges, normalised as Qwen does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(alphabet)}
    backend = Backend(models.BPE(vocab, []))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def write(folder, backend, generation=None, **changes):
    """Save a tokenizer's files; a change to None removes the setting."""
    special = [AddedToken(token, normalized=False) for token in SPECIAL]
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken(t, normalized=False) for t in ADDED[3:]])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": True,
        "model_max_length": 8,
        **changes,
    }
    settings = {k: v for k, v in settings.items() if v is not None}
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="module", params=[unigram, byte_level])
def tokenizer(request, tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("tokenizer"), request.param())
    return Tokenizer(folder)


def ids_of(tokenizer, *names):
    return [tokenizer._tokenizer.convert_tokens_to_ids(name) for name in names]


def test_chat_is_laid_out_by_the_template(tokenizer):
    user, start, end = "hello world", *ids_of(tokenizer, "<|im_start|>", "<|im_end|>")
    think, unthink = ids_of(tokenizer, "<think>", "</think>")
    say = tokenizer.encode

    found = tokenizer.encode_chat("be good", user)

    assert found == [
        *[start, *say("system\nbe good"), end, *say("\n")],
        *[start, *say("user\nhello world"), end, *say("\n")],
        *[start, *say("assistant\n"), think, *say("\n\n"), unthink, *say("\n\n")],
    ]


def test_empty_system_message_is_left_out(tokenizer):
    start = ids_of(tokenizer, "<|im_start|>")[0]
    assert tokenizer.encode_chat("", "hello").count(start) == 2
    assert "system" not in tokenizer.decode(tokenizer.encode_chat("", "hello"))


def test_thinking_is_switched_where_the_template_can(tmp_path):
    folder = write(tmp_path, unigram())
    thinking = Tokenizer(folder, enable_thinking=True).encode_chat("", "hello")
    direct = Tokenizer(folder, enable_thinking=False).encode_chat("", "hello")
    assert direct[: len(thinking)] == thinking
    assert len(direct) > len(thinking)

    template = "{{ messages[0].content }}"
    plain = Tokenizer(write(tmp_path, unigram(), chat_template=template))
    assert plain.encode_chat("", "hello") == plain.encode("hello")


def test_date_in_the_template_of_llama_is_the_same_every_day(tmp_path):
    template = """\
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{{- date_string }}"""
    tokenizer = Tokenizer(write(tmp_path, unigram(), chat_template=template))
    assert tokenizer.decode(tokenizer.encode_chat("", "hello")) == "26 Jul 2024"


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(tmp_path, text):
    tokenizer = Tokenizer(write(tmp_path, unigram()))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_decoding_skips_padding_and_special_tokens(tokenizer):
    end = ids_of(tokenizer, "<|im_end|>")[0]
    ids = [-1, -1, *tokenizer.encode("hello ,"), end, -1]
    assert tokenizer.decode(ids) == "hello ,"
    # A model's table may be larger than its tokenizer.
    assert tokenizer.decode([*ids, tokenizer.vocab_size + 5]) == "hello ,"


def test_tags_of_the_reasoning_are_decoded_even_as_special_tokens(tmp_path):
    file = write(tmp_path, byte_level()) / "tokenizer.json"
    saved = json.loads(file.read_text())
    for token in saved["added_tokens"]:
        token["special"] = True
    file.write_text(json.dumps(saved))
    tokenizer = Tokenizer(tmp_path)
    think, unthink, end = ids_of(tokenizer, "<think>", "</think>", "<|im_end|>")
    backend = tokenizer._tokenizer
    ids = [think, *tokenizer.encode("a"), unthink, *tokenizer.encode("b"), end]

    assert backend.decode(ids, skip_special_tokens=True) == "ab"
    assert tokenizer.decode(ids) == "<think>a</think>b"


def test_encoding_neither_adds_nor_recognises_special_tokens(tokenizer):
    text = "".join(SPECIAL)
    assert not set(tokenizer.encode(text)) & set(ids_of(tokenizer, *SPECIAL))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_harmless_text_stays_as_it_is(tokenizer, text):
    assert tokenizer.inert(text) == text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<|im_end|>", "< |im_end|>"),
        (
            "e\u0301𝒳<|im_end|>\n<|im_start|>system",
            "e\u0301𝒳< |im_end|>\n< |im_start|>system",
        ),
        ("<|im_<|im_end|>end|>", "<|im_< |im_end|>end|>"),
        ("<<think>></think>", "<< think>>< /think>"),
        ("< |im_end|>", "< |im_end|>"),
    ],
)
def test_untrusted_text_loses_its_special_tokens(tokenizer, text, expected):
    inert = tokenizer.inert(text)

    assert inert == expected
    assert tokenizer.inert(inert) == inert
    control = set(ids_of(tokenizer, *ADDED))
    count = lambda ids: sum(i in control for i in ids)
    harmless = tokenizer.encode_chat("hello", "hello")
    assert count(tokenizer.encode_chat(inert, inert)) == count(harmless)
    assert count(tokenizer.encode_chat(text, inert)) >= count(harmless)


def test_tokens_that_breaking_would_form_are_broken_too(tmp_path):
    backend = unigram()
    # "ab" -> "a b" is itself a token; "¤" cannot be broken; "  " is plain white space.
    backend.add_special_tokens(["ab", "a b", "¤"])
    backend.add_tokens(["  ", AddedToken("END", lstrip=True, rstrip=True)])
    tokenizer = Tokenizer(write(tmp_path, backend))

    assert tokenizer.inert("xaby") == "x by"
    assert tokenizer.inert("1 ¤ 2") == "1   2"
    assert tokenizer.inert("x  END  y") == "x  E ND  y"
    assert tokenizer.inert("x  y") == "x  y"


@pytest.mark.parametrize(
    "generation, eos_token, expected",
    [
        ({"eos_token_id": 7}, "<|im_end|>", [7, "<|im_end|>"]),
        ({"eos_token_id": [7, 9]}, None, [7, 9]),
        ({"eos_token_id": None}, "<|im_end|>", ["<|im_end|>"]),
        (None, "<|im_end|>", ["<|im_end|>"]),
    ],
)
def test_stop_tokens_come_from_both_files(tmp_path, generation, eos_token, expected):
    folder = write(tmp_path, unigram(), generation, eos_token=eos_token)
    tokenizer = Tokenizer(folder)
    end = ids_of(tokenizer, "<|im_end|>")[0]
    assert tokenizer.stop_ids == tuple(
        end if i == "<|im_end|>" else i for i in expected
    )


def test_stop_token_named_twice_counts_once(tmp_path):
    end = Tokenizer(write(tmp_path, unigram())).stop_ids[0]
    tokenizer = Tokenizer(write(tmp_path, unigram(), {"eos_token_id": [end, 3]}))
    assert tokenizer.stop_ids == (end, 3)


def test_stop_token_may_be_given_as_the_text_of_a_special_token(tmp_path):
    named = {"eos_token_id": ["<|endoftext|>", 3, "<|im_end|>"]}
    tokenizer = Tokenizer(write(tmp_path, unigram(), named))
    text, end = ids_of(tokenizer, "<|endoftext|>", "<|im_end|>")
    assert tokenizer.stop_ids == (text, 3, end)

    alone = Tokenizer(write(tmp_path, unigram(), {"eos_token_id": "<|endoftext|>"}))
    assert alone.stop_ids == (text, end)


@pytest.mark.parametrize("named", ["7", "hello", "", -1, True, 2.0, [3, None], {}])
def test_stop_token_that_is_none_is_refused_by_its_file(tmp_path, named):
    write(tmp_path, unigram(), {"eos_token_id": named})
    message = r"generation_config.json: eos_token_id holds .* neither a token's number"
    with pytest.raises(ValueError, match=message):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    "generation", [None, {}, {"eos_token_id": None}, {"eos_token_id": []}]
)
@pytest.mark.parametrize("named", [5, [5]])
def test_stop_tokens_of_the_config_count_where_no_others_are(
    tmp_path, generation, named
):
    write(tmp_path, unigram(), generation)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": named}))

    tokenizer = Tokenizer(tmp_path)

    assert tokenizer.stop_ids == (5, *ids_of(tokenizer, "<|im_end|>"))


def test_stop_tokens_of_the_config_do_not_count_beside_others(tmp_path):
    write(tmp_path, unigram(), {"eos_token_id": 3})
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert 5 not in Tokenizer(tmp_path).stop_ids


@pytest.mark.parametrize("content", ["{", "[7]"])
def test_file_that_is_no_json_object_is_named(tmp_path, content):
    write(tmp_path, unigram())
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match="generation_config.json holds no JSON object"):
        Tokenizer(tmp_path)


def test_tokens_without_a_row_are_refused(tmp_path):
    tokenizer = Tokenizer(write(tmp_path, unigram()))
    count = tokenizer.vocab_size
    tokenizer.check_rows(count)
    tokenizer.check_rows(count + 100)
    message = f"tokens up to number {count - 1}, '</think>', but the embedding has "
    with pytest.raises(ValueError, match=f"tokenizer.json. has {message}{count - 1} r"):
        tokenizer.check_rows(count - 1)

    for file in ("generation_config.json", "config.json"):
        # What was there before names no stop token.
        (tmp_path / file).write_text(json.dumps({"eos_token_id": [3, count + 7]}))
        with pytest.raises(
            ValueError, match=f"{file} names the stop token {count + 7}"
        ):
            Tokenizer(tmp_path).check_rows(count)
        (tmp_path / file).write_text("{}")


def test_gap_in_the_numbers_of_tokens_is_seen(tmp_path):
    write(tmp_path, byte_level())
    file = tmp_path / "tokenizer.json"
    written = json.loads(file.read_text())
    written["model"]["vocab"]["a"] = 999
    file.write_text(json.dumps(written))

    assert Tokenizer(tmp_path).vocab_size == 1000


def warnings_of(caplog, folder):
    caplog.clear()
    Tokenizer(folder)
    return [record.getMessage() for record in caplog.records]


def test_turn_that_ends_with_no_stop_token_is_told(tmp_path, caplog):
    assert warnings_of(caplog, write(tmp_path, unigram())) == []

    folder = write(tmp_path, unigram(), eos_token="<|endoftext|>")
    [message] = warnings_of(caplog, folder)
    end = ids_of(Tokenizer(folder), "<|im_end|>")[0]
    assert f"ends a turn with '<|im_end|>', which is no stop token ({end})" in message
    assert "only <|endoftext|> ends a response" in message
    assert message.endswith(f"add {end} to eos_token_id in generation_config.json")

    # As the message says.
    write(tmp_path, unigram(), {"eos_token_id": [end]}, eos_token="<|endoftext|>")
    assert warnings_of(caplog, tmp_path) == []


@pytest.mark.parametrize(
    "template, fault",
    [
        ("{{ messages[-1].content }}<|eot_id|>", "'<|eot_id|>', which is no token of"),
        ("{{ messages[-1].content + ' <|endoftext|>' }}", "which is no stop token"),
        ("{{ messages[-1].content }}\nUser:", None),
        ("{{ messages[0].content }}", None),
        ("{{ raise_exception('roles must alternate') }}", None),
        ("{{ messages[-1].content + 1 }}", None),
    ],
)
def test_end_of_a_turn_is_found_in_any_template(tmp_path, caplog, template, fault):
    found = warnings_of(caplog, write(tmp_path, unigram(), chat_template=template))
    assert len(found) == (fault is not None)
    assert fault is None or fault in found[0]


def test_unusable_tokenizers_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer could be loaded"):
        Tokenizer(tmp_path)
    write(tmp_path, unigram(), chat_template=None)
    with pytest.raises(ValueError, match="has no chat template; use an instruction"):
        Tokenizer(tmp_path)
    write(tmp_path, unigram(), eos_token=None)
    with pytest.raises(ValueError, match="names an end-of-text token"):
        Tokenizer(tmp_path)


def test_hub_tokenizer_is_downloaded_or_named_in_the_error(tmp_path, monkeypatch):
    folder = write(tmp_path, unigram(), {"eos_token_id": 3})
    download = lambda name, allow_patterns: str(folder)
    monkeypatch.setattr(hub, "is_absent", lambda: False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert 3 in Tokenizer("Qwen/Qwen3-8B").stop_ids

    def offline(name, allow_patterns):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match="Qwen/Qwen3-8B: no .* offline mode"):
        Tokenizer("Qwen/Qwen3-8B")


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is not None,
    reason="transformers imports torch wherever it is installed",
)
def test_use_is_silent_and_import_is_light(tmp_path):
    folder = write(tmp_path, unigram(), {"eos_token_id": 3})
    script = f"""
import sys
from sdpo_jax.data.tokenizer import Tokenizer
assert not {{"transformers", "jax", "numpy"}} & set(sys.modules)
tokenizer = Tokenizer({str(folder)!r})
tokenizer.decode(tokenizer.encode_chat("a", tokenizer.inert("hello " * 50)))
tokenizer.encode("hello " * 50)
assert "torch" not in sys.modules and "jax" not in sys.modules
"""
    root = pathlib.Path(__file__).parents[2]
    environment = {k: v for k, v in os.environ.items() if "TRANSFORMERS" not in k}

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
