"""A manifest comes back as it was written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from token_shards import SPECIAL, random_documents, write_shards

from launcher.shards.manifest import complete_folder, read_checksums, read_manifest


def test_tokens_for_the_middle_and_for_modes_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = write_shards(tmp_path / "shards", random_documents(10, 8))
    special = replace(SPECIAL, fim_prefix=20, fim_middle=21, fim_suffix=22, modes=(17, 18, 19))
    manifest = replace(written, tokenizer=replace(written.tokenizer, special=special))
    complete_folder(tmp_path / "shards", manifest, read_checksums(tmp_path / "shards", written))
    assert read_manifest(tmp_path / "shards").tokenizer.special == special
