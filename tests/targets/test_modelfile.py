"""The Modelfile beside a GGUF file, and Ollama's template in it."""

from __future__ import annotations

import json
import re
import shutil

import pytest

pytest.importorskip("jinja2")

from soloist.kernels.errors import ArtifactError
from soloist.targets.modelfile import wrapping, write

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (  # a system message becomes part of the first question: more than wrapping
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' }}"
    "{% if loop.first %}{{ first }}{% endif %}{{ m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
TALKS = [
    [("user", "2 + 2?")],
    [("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "4"), ("user", "And 3 + 3?")],
]


@pytest.fixture
def student(tmp_path):
    """A folder with a template and the two tokens a Modelfile needs, nothing else."""

    def make(template, bos="", eos="<|im_end|>"):
        folder = tmp_path / "student"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "chat_template.jinja").write_text(template)
        settings = {"bos_token": bos or None, "eos_token": {"content": eos}, "add_bos_token": template == LLAMA3}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return make


def go(template, talk):
    """Run the part of Go's template language that we write: range, if eq .Role, if not .System."""
    body = re.search(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)\Z", template, re.DOTALL)
    head, answer = template[: body.start()], body.group(2)
    greeting = re.fullmatch(r"(?:\{\{ if not \.System \}\}(.*)\{\{ end \}\})?", head, re.DOTALL).group(1) or ""
    pattern = r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)\{\{ \.Content \}\}(.*?)(?=\{\{ else|\Z)'
    roles = {role: (before, after) for role, before, after in re.findall(pattern, body.group(1), re.DOTALL)}
    wrapped = "".join(roles[role][0] + text + roles[role][1] for role, text in talk)
    return ("" if talk[0][0] == "system" else greeting) + wrapped + answer


@pytest.mark.parametrize(
    ("template", "bos"), [(CHATML, ""), (CHATML, "<|im_start|>"), (SMOLLM2, "<|im_start|>"), (LLAMA3, "<|begin|>")]
)
def test_ollamas_template_gives_the_prompt_of_the_students(template, bos, student, tmp_path):
    import jinja2

    text = write(tmp_path / "Desk-135M-Q8_0.gguf", student(template, bos)).read_text()
    assert text.startswith("FROM ./Desk-135M-Q8_0.gguf\n")
    ours = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL).group(1)
    compiled = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    for talk in TALKS:
        messages = [{"role": role, "content": content} for role, content in talk]
        wanted = compiled.render(messages=messages, add_generation_prompt=True, bos_token=bos)
        # llama.cpp adds the first token itself where the template has it in front of all
        assert go(ours, talk) == (wanted.removeprefix(bos) if template == LLAMA3 else wanted)
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER temperature 0" in text
    assert "# A grammar has no place in a Modelfile" in text


def test_a_template_that_does_more_is_left_to_ollama(student, tmp_path):
    text = write(tmp_path / "Gemma.gguf", student(GEMMA, "<bos>", "<end_of_turn>")).read_text()
    assert "TEMPLATE" not in text
    assert "does more than wrap messages" in text
    assert 'PARAMETER stop "<end_of_turn>"' in text


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ nothing.there }}", "{{ messages | length }}"])
def test_a_template_that_cannot_be_probed_is_left_to_ollama(template, student, tmp_path):
    assert "TEMPLATE" not in write(tmp_path / "Odd.gguf", student(template)).read_text()


def test_templates_of_transformers_are_read_and_what_is_none_is_named(student, tmp_path):
    """SmolLM3's marks the assistant's words for training; a date in a Modelfile would stand still."""
    template = "{% for m in messages %}{% generation %}{{ m['role'] + ':' + m['content'] + ';' }}{% endgeneration %}"
    template += "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    assert 'TEMPLATE """' in write(tmp_path / "A.gguf", student(template)).read_text()
    assert "TEMPLATE" not in write(tmp_path / "B.gguf", student("{{ strftime_now('%Y') }}" + template)).read_text()
    with pytest.raises(ArtifactError, match="the chat template is not jinja2"):
        write(tmp_path / "C.gguf", student("{% for %}"))
    assert not (tmp_path / "C.gguf.Modelfile").exists()


def test_wrapping_is_confirmed_on_another_talk():
    def counting(messages, opened):
        return "".join(f"[{m['role']}]{m['content']}[/{len(messages)}]" for m in messages) + (
            "[answer]" if opened else ""
        )

    assert wrapping(counting) is None
    plain = wrapping(
        lambda messages, opened: "".join(f"[{m['role']}]{m['content']}\n" for m in messages) + ">" * opened
    )
    assert plain == {
        "": "",
        "greeting": "",
        "answer": ">",
        "system": "[system]",
        "system end": "\n",
        "user": "[user]",
        "user end": "\n",
        "assistant": "[assistant]",
        "assistant end": "\n",
    }
