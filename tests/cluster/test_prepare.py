"""An array of Slurm makes the same shards as one machine, to the byte."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
from rich.console import Console
from slurm_cluster import ROOT, Cluster

from launcher.prepare.build import build_shards
from launcher.prepare.request import BuildRequest
from launcher.shards.manifest import read_manifest
from launcher.shards.verify import verify

pytestmark = pytest.mark.cluster


def test_prepare_sh_builds_on_an_array_and_the_last_task_completes_the_folder(cluster: Cluster, tmp_path: Path) -> None:
    tiny.make_shards(tmp_path)
    text = (tmp_path / "corpus.jsonl").read_bytes()
    corpora = [tmp_path / f"corpus-{number}.jsonl" for number in range(3)]
    for path in corpora:
        path.write_bytes(text * (3_000_000 // len(text)))  # 3 MB: each a part of its own
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    words = ["sbatch", "--wait", "--array=3-5", f"--output={tmp_path}/out-%a", str(ROOT / "slurm" / "prepare.sh")]
    words += [*map(str, corpora), "--tokenizer", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "built")]
    done = cluster.run("ctl", *words, PATH=path)
    told = "".join(file.read_text() for file in sorted(tmp_path.glob("out-*")))
    assert done.returncode == 0, done.stderr + told
    assert "task 2 of 3" in told
    assert verify(tmp_path / "built") == []
    assert len(read_manifest(tmp_path / "built").parts) == 3
    assert not list(tmp_path.glob(".built.*"))
    request = BuildRequest(corpus=tuple(map(str, corpora)), tokenizer=tmp_path / "tokenizer", out=tmp_path / "alone")
    build_shards(request, Console(quiet=True))
    for file in sorted((tmp_path / "alone").rglob("*")):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "built" / file.relative_to(tmp_path / "alone")).read_bytes()
