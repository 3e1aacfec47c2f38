"""Messages arrive whole, strangers are hung up on, and a stream is as fast as its link."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.probe import streams
from launcher.probe.wire import Decoder, encode, listen, plain


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers())), st.integers(1, 7))
def test_messages_survive_any_cut(messages: list[dict[str, int]], size: int) -> None:
    sent = b"".join(encode(message) for message in messages)
    decoder = Decoder()
    pieces = (sent[start : start + size] for start in range(0, len(sent), size))
    assert [message for piece in pieces for message in decoder.feed(piece)] == messages


@pytest.mark.parametrize("bytes_", [b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x02{x"])
def test_what_is_no_message_is_refused(bytes_: bytes) -> None:
    with pytest.raises(ValueError, match=r"message|Expecting"):
        list(Decoder().feed(bytes_))


def test_a_caller_without_the_secret_is_hung_up_on() -> None:
    with listen(0) as server:
        port = server.getsockname()[1]
        stranger = streams.call("127.0.0.1", port, "x" * 8, 5)
        friend = streams.call("127.0.0.1", port, "s" * 8, 5)
        with streams.answer(server, "s" * 8, 5) as taken:
            friend.sendall(b"hello")
            assert streams.read_exactly(taken, 5) == b"hello"
        assert stranger.recv(1) == b""
        stranger.close()
        friend.close()
        with pytest.raises(TimeoutError):
            streams.answer(server, "s" * 8, 0.05)


def test_a_slow_stream_is_measured_as_slow_as_it_is() -> None:
    def measure(pace: streams.Pace | None) -> float:
        here, there = socket.socketpair()
        thread = threading.Thread(target=streams.send_stream, args=(here, 0.2, pace))
        thread.start()
        speed = streams.receive_stream(there, 0.2)
        thread.join()
        return speed

    slow = measure(lambda num_bytes: num_bytes / 1e6)
    assert slow <= 1.1e6
    assert measure(None) > 2 * slow
    here, there = socket.socketpair()
    here.close()
    assert streams.receive_stream(there, 0.1) == 0.0


def test_addresses_are_told_as_they_are_dialled() -> None:
    assert plain("::ffff:10.0.0.1") == "10.0.0.1"
    assert plain("fe80::1") == "fe80::1"
