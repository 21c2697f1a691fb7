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
from typing import Any

from soloist.targets.base import Message
from soloist.targets.gguf_tokenizer import adds, chat_template
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
    settings_file = student / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.is_file() else {}
    tokens = {kind: _text(settings.get(f"{kind}_token")) for kind in ("bos", "eos")}
    special = {f"{kind}_token": text for kind, text in tokens.items()}
    render = compiled(chat_template(student), special, dates=False)
    found = wrapping(render, tokens["bos"] if adds(student, "bos") else "")
    lines = [f"FROM ./{gguf.name}", *(f"# Note: {note}." for note in notes), ""]
    if found is None:
        lines += ["# The chat template does more than wrap messages; Ollama takes its nearest from the file.", ""]
        stops = [tokens["eos"]]
    else:
        lines += [f'TEMPLATE """{_go(found)}"""', ""]
        stops = [tokens["eos"], found["assistant end"].strip()]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in dict.fromkeys(filter(None, stops))]
    lines += ["PARAMETER temperature 0", "", _GRAMMAR]
    file = gguf.with_name(gguf.name + ".Modelfile")
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text("\n".join(lines), encoding="utf-8")
    temporary.replace(file)
    return file


def _text(token: Any) -> str:
    found = token.get("content") if isinstance(token, dict) else token
    return str(found or "")


def wrapping(render: Render, bos: str = "") -> dict[str, str] | None:
    """What a template puts around messages, or None where it does more.

    `render` takes messages and whether to open the answer; `bos` is what llama.cpp itself puts in front of a prompt.
    Keys: "" before everything (`bos`), "greeting" where no system message is, "<role>" before and "<role> end" after
    the text of each role, "answer" at the end.
    """
    try:
        found = _probe(render, bos)
    except Exception:  # a template is a program: whatever it raises, it does more than wrap
        return None
    talk: list[Message] = [
        {"role": role, "content": text}
        for role, text in (("user", "Hi there"), ("assistant", "Yes?"), ("user", "2 + 2"), ("assistant", "4"))
    ]
    told = [Message(role="system", content="Be brief"), *talk]
    for messages in (talk, told, talk[:3], talk[:1]):
        for opened in (False, True):
            if render(messages, opened) != _wrapped(found, messages, opened):
                return None
    return found


def _probe(render: Render, bos: str) -> dict[str, str]:
    system, user, answer, again = (f"\x02{sign}\x03" for sign in "SUAB")
    three: list[Message] = [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
        {"role": "assistant", "content": answer},
    ]
    four = [*three, Message(role="user", content=again)]
    closed, opened = render(four, False), render(four, True)
    user_end = closed.split(again)[1]
    to_user, to_answer = (_between(closed, *pair) for pair in ((system, user), (user, answer)))
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


def _wrapped(found: Mapping[str, str], messages: Sequence[Message], opened: bool) -> str:
    greeting = "" if messages[0]["role"] == "system" else found["greeting"]
    said = "".join(found[m["role"]] + m["content"] + found[f"{m['role']} end"] for m in messages)
    return found[""] + greeting + said + (found["answer"] if opened else "")


def _go(found: Mapping[str, str]) -> str:
    """The template in Ollama's language, without the token at the beginning, which llama.cpp adds itself."""
    greeting = f"{{{{ if not .System }}}}{found['greeting']}{{{{ end }}}}" if found["greeting"] else ""
    roles = "".join(
        f'{{{{ {"if" if role == ROLES[0] else "else if"} eq .Role "{role}" }}}}'
        f"{found[role]}{{{{ .Content }}}}{found[f'{role} end']}"
        for role in ROLES
    )
    return f"{greeting}{{{{ range .Messages }}}}{roles}{{{{ end }}}}{{{{ end }}}}{found['answer']}"
