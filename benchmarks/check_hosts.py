"""`pretrain check` on hosts in network namespaces: rounds, time, and whom it names (needs root and iproute2).

python -m benchmarks.check_hosts 2 4 8        # a real rank each, once with nothing wrong, once with a slow link
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HUB, NET, PORT = "check-hub", "10.88.0", 23456
SLOW = ("rate", "20mbit", "burst", "64kb", "latency", "100ms")


def sh(*words: str, check: bool = True) -> None:
    """Run a command."""
    subprocess.run(words, check=check, capture_output=True)


def inside(name: str, *words: str) -> None:
    """Run a command in a network namespace."""
    sh("ip", "netns", "exec", name, *words)


def up(num_hosts: int) -> None:
    """A switch, and hosts that are connected to it."""
    sh("ip", "netns", "add", HUB)
    inside(HUB, "ip", "link", "add", "br0", "type", "bridge")
    inside(HUB, "ip", "link", "set", "br0", "up")
    for number in range(num_hosts):
        name, cable = f"check-{number}", f"v-{number}"
        sh("ip", "netns", "add", name)
        sh("ip", "link", "add", cable, "netns", HUB, "type", "veth", "peer", "name", "eth0", "netns", name)
        inside(HUB, "ip", "link", "set", cable, "master", "br0", "up")
        inside(name, "ip", "addr", "add", f"{NET}.{number + 1}/24", "dev", "eth0")
        inside(name, "ip", "link", "set", "eth0", "up")
        inside(name, "ip", "link", "set", "lo", "up")


def down(num_hosts: int) -> None:
    """Remove all of it."""
    for number in range(num_hosts):
        sh("ip", "netns", "del", f"check-{number}", check=False)
    sh("ip", "netns", "del", HUB, check=False)


def check(num_hosts: int, folder: Path) -> tuple[dict[str, object], float]:
    """One check, with a rank on every host; what it found, and how long it took from start to end."""
    (folder / "hosts").write_text("".join(f"node{number + 1} slots=1\n" for number in range(num_hosts)))
    words = [sys.executable, "-m", "launcher.probe", "--hostfile", str(folder / "hosts"), "--json"]
    shared = {"WORLD_SIZE": str(num_hosts), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": f"{NET}.1"}
    shared |= {"MASTER_PORT": str(PORT), "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    ranks = [
        subprocess.Popen(
            ["ip", "netns", "exec", f"check-{number}", *words],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for number in range(num_hosts)
    ]
    told = [rank.communicate()[0] for rank in ranks]
    return json.loads(told[0]), time.perf_counter() - began


def main() -> None:
    """Measure each number of hosts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hosts", nargs="*", type=int, default=[2, 4, 8], help="numbers of hosts (2 4 8)")
    print("hosts  link of node2  rounds  in the rounds  in all   exit  left out")
    with tempfile.TemporaryDirectory() as folder:
        for num_hosts in parser.parse_args().hosts:
            try:
                up(num_hosts)
                for fault in ("as the others", "20 Mbit/s"):
                    if fault != "as the others":
                        inside("check-1", "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *SLOW)
                    told, elapsed_s = check(num_hosts, Path(folder))
                    rounds = told["rounds"]
                    assert isinstance(rounds, list)
                    in_rounds_s = sum(one["elapsed_s"] for one in rounds)
                    print(
                        f"{num_hosts:<7}{fault:<15}{len(rounds):<8}{in_rounds_s:<15.1f}{elapsed_s:<9.1f}"
                        f"{told['exit_code']:<6}{told['excluded']}",
                        flush=True,
                    )
            finally:
                down(num_hosts)


if __name__ == "__main__":
    main()
