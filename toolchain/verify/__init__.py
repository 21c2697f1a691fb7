"""The fidelity gate: a compiled file is opened in its own runtime, in a subprocess, and compared.

    student (torch, float32) ─┐
                              ├─ same job (process, worker) ─> record.json + logits ─> differences ─┐
    compiled file ────────────┘                                                          fidelity ─> verdict
    its questions (accuracy): 16-bit student and file, the same questions, paired ──────────────────┘

The student and the file go through the same worker, so that nothing but the model differs. What may not differ at
all: the text of the chat template, token ids of the prompts, answers and tokenizer cases. What is held to a
tolerance: next-token distributions over the reference answers, and where questions are given the share of right
answers. Greedy answers are compared too, as a number for the report and not as a gate: one flipped token early changes
all that follows.
"""
