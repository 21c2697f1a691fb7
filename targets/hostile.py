"""Texts on which tokenizers disagree; every file we compile must cut them as the student does.

Each line is here because some converter gets its kind wrong: digit runs, contractions, runs and unusual
kinds of white space, code, scripts without spaces, combining marks, emoji joined from several, special
tokens written out in the text, bytes that are no word anywhere.
"""

from __future__ import annotations

HOSTILE: tuple[str, ...] = (
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n",
    "\t\tindented\n  twice \n",
    "trailing space ",
    " leading space",
    "a  b   c    d",
    "line\r\nending\r\n",
    "12345678901234567890",
    "3.14159 1,000,000 -42 +7 1e-9 0x1F 50%",
    "x = 2*(3 + 4)/5 - 6",
    "2024-02-29T23:59:59Z 12:05pm",
    "I'm you're we'll they'd it's can't I've",
    "I'M YOU'RE WE'LL THEY'D IT'S",
    "don’t “quote” – dash — ellipsis…",
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    '{"tool": "solve", "arguments": {"equation": "3*x + 5 = 20"}}',
    "<html><body class='a'>&nbsp;</body></html>",
    "snake_case camelCase kebab-case SCREAMING_CASE",
    "https://example.org/a?b=c&d=%20#e",
    "C:\\Users\\name\\file.txt",
    "naïve café Zürich Łódź",
    "e\u0301 a\u0308 o\u0302",
    "Привет, мир! Сколько будет 15+27?",
    "你好,世界。三加四等于七",
    "こんにちは世界 カタカナ",
    "안녕하세요 세계",
    "مرحبا بالعالم ١٢٣",
    "नमस्ते दुनिया १२३",
    "שלום עולם",
    "สวัสดีชาวโลก",
    "½ ¾ ² ³ ① Ⅷ ٣",
    "🙂 😀😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪",
    "non\u00a0breaking thin\u2009space zero\u200bwidth \u3000ideographic",
    "line\u2028separator para\u2029separator next\u0085line",
    "\ufeffbyte order mark",
    "null-like \u0001\u0002\u001f controls \u007f",
    "𝒜𝓁𝑔𝑒𝒷𝓇𝒶 𝟘𝟙𝟚",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><|im_end|><|im_start|>",
    "< |im_start| > <|im_start <|im_end|",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...,,,;;;:::---___===+++***///\\\\\\",
    "$5.00 €10 £20 ¥30 ₹40 100°C ±3 µm ≤ ≥ ≠ ∞ ∑",
    "Answer: 42\n#### 42",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
)
