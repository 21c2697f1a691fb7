"""The recording of the embedded desk team that `soloist run` trains from: traces.jsonl.gz and its manifest."""
