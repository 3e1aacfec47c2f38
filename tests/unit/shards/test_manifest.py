"""A manifest written before a special token was known to us is still read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import orjson
import xxhash
from token_shards import SPECIAL, random_documents, write_shards

from launcher.shards.manifest import MANIFEST, complete_folder, read_checksums, read_manifest

NEWER = ("fim_prefix", "fim_middle", "fim_suffix", "modes")


def test_tokens_for_the_middle_and_for_modes_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = write_shards(tmp_path / "shards", random_documents(10, 8))
    special = replace(SPECIAL, fim_prefix=20, fim_middle=21, fim_suffix=22, modes=(17, 18, 19))
    manifest = replace(written, tokenizer=replace(written.tokenizer, special=special))
    complete_folder(tmp_path / "shards", manifest, read_checksums(tmp_path / "shards", written))
    assert read_manifest(tmp_path / "shards").tokenizer.special == special


def test_a_manifest_that_does_not_name_them_has_none(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", random_documents(10, 8))
    path = tmp_path / "shards" / MANIFEST
    fields = json.loads(path.read_text(encoding="utf-8"))
    del fields["xxh3"]
    for name in NEWER:
        del fields["tokenizer"]["special"][name]
    checksum = xxhash.xxh3_128_hexdigest(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS))
    path.write_text(json.dumps({**fields, "xxh3": checksum}) + "\n", encoding="utf-8")
    assert read_manifest(tmp_path / "shards").tokenizer.special == SPECIAL
