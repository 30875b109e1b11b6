import json
from pathlib import Path
from typing import Any

import pytest
from sample_models import FAMILIES, FAMILY_NAMES, write_model_folder

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.errors import InvalidRequest, Unavailable


def change(path: Path, **entries: Any) -> None:
    body = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (body | entries).items() if value is not None}))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_stop_ids_hold_every_end_of_an_answer(tmp_path: Path, family: str) -> None:
    """The generation config's ends come first, then the tokenizer's own, none twice, all known to the tokenizer."""
    tokenizer = load_chat_tokenizer(write_model_folder(tmp_path / family, family))
    _, _, eos, ends = FAMILIES[family]
    texts = [tokenizer.tokenizer.id_to_token(number) for number in tokenizer.stop_ids]
    assert texts[: len(ends)] == list(ends)
    assert eos in texts
    assert len(set(texts)) == len(texts)
    assert None not in texts
    assert tokenizer.tokenizer.id_to_token(tokenizer.eos_id) == eos


def test_end_of_turn_is_found_in_the_template(tmp_path: Path) -> None:
    """A model made from a GGUF file may name only the end of text: the template shows Phi-3's <|end|>."""
    folder = write_model_folder(tmp_path / "phi-3", "phi-3")
    (folder / "generation_config.json").unlink()
    tokenizer = load_chat_tokenizer(folder)
    texts = {tokenizer.tokenizer.id_to_token(number) for number in tokenizer.stop_ids}
    assert texts == {"<|endoftext|>", "<|end|>"}


def test_end_token_may_be_an_id_in_either_config(tmp_path: Path) -> None:
    """A single id or a list is accepted, and the eos text is taken from it when the tokenizer's config has none."""
    folder = write_model_folder(tmp_path / "smollm2", "smollm2")
    change(folder / "tokenizer_config.json", eos_token=None)
    known = load_chat_tokenizer(folder).tokenizer
    change(folder / "config.json", eos_token_id=known.token_to_id("<|im_end|>"))
    change(folder / "generation_config.json", eos_token_id=[known.token_to_id("<|endoftext|>")])
    tokenizer = load_chat_tokenizer(folder)
    assert tokenizer.eos == "<|endoftext|>"
    assert [known.id_to_token(number) for number in tokenizer.stop_ids] == ["<|endoftext|>", "<|im_end|>"]


def test_special_token_may_be_an_object(tmp_path: Path) -> None:
    """The older form of tokenizer_config.json writes special tokens with their flags."""
    folder = write_model_folder(tmp_path / "smollm2", "smollm2")
    change(folder / "tokenizer_config.json", eos_token={"content": "<|im_end|>", "lstrip": False})
    assert load_chat_tokenizer(folder).eos == "<|im_end|>"


def test_template_is_taken_from_its_file_or_the_default_of_a_list(tmp_path: Path) -> None:
    """chat_template.jinja wins over the entry in the config; of named templates the default is used."""
    folder = write_model_folder(tmp_path / "smollm2", "smollm2")
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ messages[0].content }}"}]
    change(folder / "tokenizer_config.json", chat_template=named)
    assert load_chat_tokenizer(folder).template.source == "{{ messages[0].content }}"
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    assert load_chat_tokenizer(folder).template.source == "{{ messages[-1].content }}"


def test_folder_that_cannot_be_used_says_what_is_missing(tmp_path: Path) -> None:
    """No template, a broken template, no end token, no tokenizer and a broken file each have their own code."""
    folder = write_model_folder(tmp_path / "plain", "plain")
    change(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(InvalidRequest) as caught:
        load_chat_tokenizer(folder)
    assert caught.value.code == "no_end_token"
    change(folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(InvalidRequest, match="no chat template") as caught:
        load_chat_tokenizer(folder)
    assert caught.value.code == "no_chat_template"
    change(folder / "tokenizer_config.json", chat_template="{% for x in")
    with pytest.raises(InvalidRequest) as caught:
        load_chat_tokenizer(folder)
    assert caught.value.code == "chat_template_invalid"
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(Unavailable, match="not valid JSON"):
        load_chat_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(Unavailable, match="cannot be read"):
        load_chat_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(Unavailable, match="no tokenizer"):
        load_chat_tokenizer(folder)


def test_encode_recognises_special_tokens_and_adds_none(tmp_path: Path) -> None:
    """Control tokens in text become their ids; nothing is put before or after; decode leaves them out unless asked."""
    tokenizer = load_chat_tokenizer(write_model_folder(tmp_path / "smollm2", "smollm2"))
    ids = tokenizer.encode("<|im_start|>user\nHello<|im_end|>")
    assert tokenizer.tokenizer.id_to_token(ids[0]) == "<|im_start|>"
    assert tokenizer.tokenizer.id_to_token(ids[-1]) == "<|im_end|>"
    assert tokenizer.decode(ids) == "user\nHello"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>user\nHello<|im_end|>"
    assert tokenizer.encode("") == []
    assert max(ids) < tokenizer.vocabulary_size


def test_truncation_in_a_published_tokenizer_is_switched_off(tmp_path: Path) -> None:
    """A length from another use never cuts an example."""
    folder = write_model_folder(tmp_path / "smollm2", "smollm2")
    tokenizer = load_chat_tokenizer(folder).tokenizer
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert len(load_chat_tokenizer(folder).encode("Hello, how are you today?")) > 4
    assert len(load_chat_tokenizer(folder).encode("x")) == 1


def test_templates_are_probed_for_what_they_understand(tmp_path: Path) -> None:
    """System role, tools and calls are found by rendering, not by reading the source."""
    found = {}
    for family in FAMILY_NAMES:
        template = load_chat_tokenizer(write_model_folder(tmp_path / family, family)).template
        found[family] = (template.knows_system, template.knows_tools, template.call_form is not None)
    assert found["smollm2"] == (True, False, False)
    assert found["qwen-2.5"] == found["qwen-3"] == found["llama-3.2"] == (True, True, True)
    assert found["gemma-2"] == found["mistral"] == (False, False, False)
    assert found["phi-4-mini"] == (True, False, False)
