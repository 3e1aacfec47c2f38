"""Reading takes the same memory whatever there is to read: no layout is held whole."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from reading import write_stream

RECORD = {"completion": "公民的合法权益受法律保护。" * 40, "source": "law"}
OPENED: dict[str, Any] = {
    ".gz": partial(gzip.open, mode="wb", compresslevel=1),
    ".xz": partial(lzma.open, mode="wb", preset=0),
    ".zst": partial(pa.CompressedOutputStream, compression="zstd"),
}
PEAKS = """
import resource, sys
from launcher.prepare.readers import ReadOptions, SegmentReader
from launcher.prepare.sources import cut, find_sources
for name in sys.argv[1:]:
    sources = find_sources([name])
    ((segment,),) = cut(sources, 1 << 40)
    with SegmentReader(sources[0], segment, ReadOptions(txt="line")) as reader:
        num_records = sum(1 for record in reader)
    print(num_records, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def write(path: Path, num_records: int) -> None:
    if path.suffix in (".parquet", ".arrow"):
        table = pa.table({key: [value] * num_records for key, value in RECORD.items()})
        if path.suffix == ".arrow":
            write_stream(path, table, rows=1000)
        else:
            parquet.write_table(table, path, row_group_size=2000)
        return
    is_array = path.suffixes[0] == ".json"
    text = json.dumps(RECORD, ensure_ascii=False, indent=4 if is_array else None).encode()
    with OPENED.get(path.suffix, partial(open, mode="wb"))(str(path)) as file:
        file.write(b"[" if is_array else b"")
        for number in range(num_records):
            file.write(b",\n" if is_array and number else b"")
            file.write(text + b"\n")
        file.write(b"]" if is_array else b"")


@pytest.mark.parametrize(
    "name",
    [
        "x.jsonl",
        "x.json",
        "x.txt",
        "x.jsonl.gz",
        "x.json.gz",
        "x.json.zst",
        "x.json.xz",
        "x.parquet",
        "x.arrow",
        "hub:x.json",
        "hub:x.jsonl.gz",
    ],
)
def test_memory_does_not_grow_with_the_source(tmp_path: Path, name: str) -> None:
    is_hub, name = name.startswith("hub:"), name.removeprefix("hub:")
    small, large = tmp_path / "small" / name, tmp_path / "large" / name
    for path, num_records in ((small, 4_000), (large, 40_000)):  # 6 and 64 MB
        path.parent.mkdir()
        write(path, num_records)
    words = [f"hub:{path.parent}" if is_hub else path for path in (small, large)]
    done = subprocess.run([sys.executable, "-c", PEAKS, *words], capture_output=True, text=True, check=True)
    (few, before), (many, after) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (4_000, 40_000)
    assert after - before < 16  # MB
