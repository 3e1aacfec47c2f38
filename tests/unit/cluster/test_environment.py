"""What goes to other machines, what stays, and what nobody sees."""

from __future__ import annotations

import pytest

from launcher.cluster.environment import NOT_OUTSIDE, described, forwarded, is_secret, refuse_unused_gpus, stay_inside
from launcher.errors import MissingDependencyError, UsageError


@pytest.mark.parametrize(
    ("name", "goes", "reason"),
    [
        ("NCCL_IB_HCA", True, "how ranks communicate"),
        ("GLOO_SOCKET_IFNAME", True, "likewise, on a CPU"),
        ("LD_LIBRARY_PATH", True, "which libraries they load"),
        ("PYTHONPATH", True, "which code they run"),
        ("OMP_NUM_THREADS", True, "how they compute"),
        ("HF_HOME", True, "where files lie"),
        ("RANK", False, "of one process"),
        ("MASTER_ADDR", False, "of another launch"),
        ("CUDA_VISIBLE_DEVICES", False, "of one machine"),
        ("SLURM_JOB_ID", False, "of another launch"),
        ("OMPI_COMM_WORLD_RANK", False, "of one process"),
        ("HOME", False, "the other machine knows better"),
        ("CCACHE_DIR", False, "begins like CC and is none"),
    ],
)
def test_what_decides_how_a_rank_works_goes_with_it(name: str, goes: bool, reason: str) -> None:
    assert (name in forwarded({name: "x"})) == goes, reason


def test_what_is_asked_for_goes_too() -> None:
    sent = forwarded({"MINE": "a b", "NCCL_DEBUG": "WARN"}, ["MINE", "YOURS=c=d", "NCCL_DEBUG=INFO"])
    assert sent == {**NOT_OUTSIDE, "MINE": "a b", "NCCL_DEBUG": "INFO", "YOURS": "c=d"}


@pytest.mark.parametrize(
    ("word", "message"), [("UNSET", "UNSET is not set here"), ("a-b=1", "is no variable"), ("", "is no variable")]
)
def test_what_cannot_be_forwarded_is_told(word: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        forwarded({}, [word])
    assert message in str(caught.value)


def test_a_function_that_bash_exported_stays_here() -> None:
    assert "HF_x%%" not in forwarded({"HF_x%%": "() { :; }"})


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", "x", True),
        ("WANDB_API_KEY", "x", True),
        ("AWS_SECRET_ACCESS", "x", True),
        ("DB_PASSWORD", "x", True),
        ("db_passwd", "x", True),
        ("DB_PASS", "x", True),
        ("MYSQL_PWD", "x", True),
        ("HTTP_AUTHORIZATION", "x", True),
        ("PWD", "/home/me", False),
        ("MINE", "hf_abcdefghijklmnopqrstuvw", True),
        ("HTTPS_PROXY", "http://me:word@proxy:3128", True),
        ("HF_ENDPOINT", "https://mirror.example/hub", False),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("PATH", "/usr/bin", False),
    ],
)
def test_secrets_are_known_by_their_name_or_look(name: str, value: str, secret: bool) -> None:
    assert is_secret(name, value) == secret
    assert (f"{name}={value}" not in described({name: value})) == secret
    assert name in described({name: value})


def test_nobody_outside_is_asked_unless_the_user_says_so() -> None:
    env = {"HF_HUB_OFFLINE": "0"}
    stay_inside(env)
    assert env == {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


@pytest.mark.parametrize(
    ("device", "env", "refused", "reason"),
    [
        ("cpu", {"SLURM_STEP_GPUS": "0,1"}, True, "given, and not seen"),
        ("cpu", {"SLURM_JOB_GPUS": "0"}, True, "likewise, by another name"),
        ("cpu", {"CUDA_VISIBLE_DEVICES": "0"}, False, "anybody may have set it"),
        ("cuda", {"SLURM_STEP_GPUS": "0,1"}, False, "used"),
        ("cpu", {}, False, "none asked for"),
    ],
)
def test_gpus_that_slurm_gave_are_used(device: str, env: dict[str, str], refused: bool, reason: str) -> None:
    if not refused:
        refuse_unused_gpus(device, env)
        return
    with pytest.raises(MissingDependencyError, match="and torch sees none") as caught:
        refuse_unused_gpus(device, env)
    assert "ask for no GPUs" in caught.value.fix, reason
