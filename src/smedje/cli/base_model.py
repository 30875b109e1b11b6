"""What the data commands need of an installed base model: its tokenizer and its limit, loaded when they are used."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smedje.chat.tokenizer import ChatTokenizer


def tokenizer_of(model: str) -> "ChatTokenizer":
    """The tokenizer and template of a base model in this machine's state folder. Raises NotFound."""
    from smedje.chat.tokenizer import load_chat_tokenizer
    from smedje.modeling.folder import installed_folder
    from smedje.settings import load_settings

    return load_chat_tokenizer(installed_folder(load_settings().home, model))


def limit_of(model: str) -> int:
    """The most tokens that an example may have by default, as jobs have it."""
    from smedje.modeling.catalog import base_defaults

    return base_defaults(model).max_tokens_per_example
