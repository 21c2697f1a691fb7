"""The Modelfile with which Ollama takes a GGUF file: `ollama create NAME -f File.gguf.Modelfile`.

Ollama does not run a file's own chat template: it compares it with templates it knows, and hands an unknown one the
bare prompt. The Modelfile therefore spells the template out in Ollama's language wherever it only wraps each message
(role by role, a greeting where no system message is given, the opening of the answer), which is found by rendering
probes and confirmed on a conversation that was not used to find it. A template that does more is left to Ollama, and
the Modelfile says so. Left out: tools in templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from soloist.targets.base import Message
from soloist.targets.files import whole_file
from soloist.targets.gguf_tokenizer import adds, chat_template, special_token
from soloist.targets.portable.template import Render
from soloist.targets.portable.template import chat_template as compiled

ROLES = ("system", "user", "assistant")
_GRAMMAR = """# A grammar has no place in a Modelfile: Ollama constrains answers by JSON schemas alone. Where answers
# must follow the student's grammar, use `soloist chat`, llama-server --grammar-file or llama-cpp-python.
"""


def write(gguf: Path, student: Path, notes: Sequence[str] = ()) -> Path:
    """Write `<gguf>.Modelfile` beside a GGUF file; returns its path. The student has a chat template.

    `notes` are what whoever runs the file outside Soloist should know.
    """
    bos, eos = special_token(student, "bos"), special_token(student, "eos")
    render = compiled(chat_template(student), {"bos_token": bos, "eos_token": eos}, dates=False)
    parts = wrapping(render, bos if adds(student, "bos") else "")
    lines = [f"FROM ./{gguf.name}"]
    for note in notes:
        lines.append(f"# Note: {note}.")
    stops = [eos]
    if parts is None:
        lines += ["", "# The chat template does more than wrap messages; Ollama takes its nearest from the file.", ""]
    else:
        lines += ["", f'TEMPLATE """{_ollama_template(parts)}"""', ""]
        stops.append(parts["assistant end"].strip())
    for stop in dict.fromkeys(filter(None, stops)):
        lines.append(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}")
    lines += ["PARAMETER temperature 0", "", _GRAMMAR]
    file = gguf.with_name(gguf.name + ".Modelfile")
    with whole_file(file) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return file


def wrapping(render: Render, bos: str = "") -> dict[str, str] | None:
    """What a template puts around messages, or None where it does more.

    `render` takes messages and whether to open the answer; `bos` is what llama.cpp itself puts in front of a prompt.
    Keys: "" before everything (`bos`), "greeting" where no system message is, "<role>" before and "<role> end" after
    the text of each role, "answer" at the end.
    """
    try:
        parts = _probe(render, bos)
    except Exception:  # a template is a program: whatever it raises, it does more than wrap
        return None
    chat: list[Message] = [
        {"role": "user", "content": "Hi there"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": "4"},
    ]
    with_system = [Message(role="system", content="Be brief"), *chat]
    for messages in (chat, with_system, chat[:3], chat[:1]):
        for opened in (False, True):
            if render(messages, opened) != _wrapped(parts, messages, opened):
                return None
    return parts


def _probe(render: Render, bos: str) -> dict[str, str]:
    system, user, answer, again = "\x02S\x03", "\x02U\x03", "\x02A\x03", "\x02B\x03"
    three: list[Message] = [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
        {"role": "assistant", "content": answer},
    ]
    four = [*three, Message(role="user", content=again)]
    closed, opened = render(four, False), render(four, True)
    user_end = closed.split(again)[1]
    to_user, to_answer = _between(closed, system, user), _between(closed, user, answer)
    answer_end = render(three, False).split(answer)[1]
    user_start = _between(closed, answer, again).removeprefix(answer_end)
    system_end = to_user.removesuffix(user_start)
    head, first = closed.split(system)[0], render(four[1:], False).split(user)[0].removesuffix(user_start)
    start = bos if head.startswith(bos) and first.startswith(bos) else ""
    return {
        "": start,
        "greeting": first.removeprefix(start),
        "system": head.removeprefix(start),
        "system end": system_end,
        "user": user_start,
        "user end": user_end,
        "assistant": to_answer.removeprefix(user_end),
        "assistant end": answer_end,
        "answer": opened.split(again)[1].removeprefix(user_end),
    }


def _between(text: str, left: str, right: str) -> str:
    return text.split(left)[1].split(right, maxsplit=1)[0]


def _wrapped(parts: Mapping[str, str], messages: Sequence[Message], opened: bool) -> str:
    text = parts[""]
    if messages[0]["role"] != "system":
        text += parts["greeting"]
    for message in messages:
        text += parts[message["role"]] + message["content"] + parts[f"{message['role']} end"]
    return text + parts["answer"] if opened else text


def _ollama_template(parts: Mapping[str, str]) -> str:
    """The template in Ollama's language, without the token at the beginning, which llama.cpp adds itself."""
    greeting = f"{{{{ if not .System }}}}{parts['greeting']}{{{{ end }}}}" if parts["greeting"] else ""
    roles, word = "", "if"
    for role in ROLES:
        roles += f'{{{{ {word} eq .Role "{role}" }}}}{parts[role]}{{{{ .Content }}}}{parts[f"{role} end"]}'
        word = "else if"
    return f"{greeting}{{{{ range .Messages }}}}{roles}{{{{ end }}}}{{{{ end }}}}{parts['answer']}"
