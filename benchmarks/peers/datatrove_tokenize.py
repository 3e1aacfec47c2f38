"""datatrove's way from JSONL to `.ds`: JsonlReader, DocumentTokenizer, LocalPipelineExecutor.

A task takes whole files, so the corpus is given as one file a task. Shuffling, its default, is left out: it is a second
pass that the others do not make. Its processes are forked, not served from a fork server, which starts them sooner and
lets their cpu time be counted.
"""

from __future__ import annotations

import argparse

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer


def main() -> None:
    """Tokenize a folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", required=True, help="folder of JSONL files")
    parser.add_argument("--tokenizer", required=True, help="tokenizer.json")
    parser.add_argument("--field", required=True)
    parser.add_argument("--end", required=True, help="token behind each document")
    parser.add_argument("--output", required=True)
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    tokenize = DocumentTokenizer(
        output_folder=f"{options.output}/tokens",
        tokenizer_name_or_path=options.tokenizer,
        eos_token=options.end,
        shuffle_documents=False,
    )
    LocalPipelineExecutor(
        pipeline=[JsonlReader(options.input, text_key=options.field), tokenize],
        tasks=options.workers,
        workers=options.workers,
        logging_dir=f"{options.output}/logs",
        start_method="fork",
    ).run()


if __name__ == "__main__":
    main()
