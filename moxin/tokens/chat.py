"""How a chat becomes tokens: with control tokens of its own, or as text in Tulu's format."""

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
END = "<|end|>"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% elif message['role'] in ['system', 'user'] %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% else %}{{ raise_exception('roles are system, user and assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Jinja for `transformers`: the ids of `Tokenizer.render`, except that `transformers` reads the name of a control token in a
message as that token, where `render` keeps it as text. `generation` marks what an assistant mask covers."""

TEXT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>\n' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\n' }}"
    "{% elif message['role'] in ['system', 'user'] %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}"
    "{% else %}{{ raise_exception('roles are system, user and assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""The same for a vocabulary without chat tokens; where there is a begin token, `{{ bos_token }}` goes before it."""

Rendered = tuple[list[int], list[bool]]


def role_of(message: Mapping[str, str]) -> str:
    """Raises `ValueError` for an unknown role."""
    role = message["role"]
    if role not in ROLES:
        raise ValueError(f"a message has the role {role!r}; the roles are {', '.join(ROLES)}")
    return role


def render_tokens(
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool,
    encode: Callable[[str], list[int]],
    ids_of: Mapping[str, int],
    bos: Sequence[int],
) -> Rendered:
    """`<s><|user|>Q<|end|><|assistant|>A<|end|>`; `ids_of` has the ids of `ROLES` and of `END` by name."""
    ids, mask = [*bos], [False] * len(bos)
    for message in messages:
        role = role_of(message)
        written = [*encode(message["content"]), ids_of[END]]
        ids += [ids_of[ROLES[role]], *written]
        mask += [False, *[role == "assistant"] * len(written)]
    if add_generation_prompt:
        ids.append(ids_of[ROLES["assistant"]])
        mask.append(False)
    return ids, mask


def render_text(
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool,
    encode: Callable[[str, bool], list[int]],
    bos: Sequence[int],
    eos_id: int,
) -> Rendered:
    """Tulu's format (arXiv 2306.04751): `<|user|>\\nQ\\n<|assistant|>\\nA</s>\\n`, where only the end token is a token.

    `encode(text, inside)` gives the ids of what stands between two control tokens, which is encoded as one piece; `inside`
    says that a control token is before it. Where a token reaches across the beginning of an answer, it counts as the
    answer's: nothing that an assistant said is lost.
    """
    ids, mask = [*bos], [False] * len(bos)
    text = ""
    for message in messages:
        role = role_of(message)
        text += f"{ROLES[role]}\n"
        if role != "assistant":
            text += f"{message['content']}\n"
            continue
        asked, answered = encode(text, bool(ids)), encode(text + message["content"], bool(ids))
        n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, answered, strict=False)))
        ids += [*answered, eos_id]
        mask += [False] * n + [True] * (len(answered) - n + 1)
        text = "\n"
    if add_generation_prompt:
        text += f"{ROLES['assistant']}\n"
    rest = encode(text, bool(ids))
    return ids + rest, mask + [False] * len(rest)
