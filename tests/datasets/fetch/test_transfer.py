"""Transfers against a real server on 127.0.0.1 that cuts, stalls, lies and changes its mind."""

import hashlib
import json
import os
import shutil
import socket
import time

import pytest

from cli import UserError
from datasets.fetch import sources, transfer
from datasets.fetch.transfer import PATIENCE, check_url, fetch, told_size
from tests.datasets.fetch.server import a_date

CONTENT = bytes(i * i * 7 % 251 for i in range(300_000))
OTHER = CONTENT[::-1]
MD5, SHA256 = (hashlib.new(name, CONTENT).hexdigest() for name in ("md5", "sha256"))


@pytest.fixture(autouse=True)
def stalls_are_short(quick, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT", 0.3)


@pytest.fixture
def server(server):
    server.files["/set.zip"] = CONTENT
    return server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "set.zip"


def left(target):
    """What lies beside the target after a transfer."""
    return sorted(path.name for path in target.parent.iterdir())


def fetched(server, target, digest=MD5):
    size = fetch(server.url(), target, digest)
    assert target.read_bytes() == CONTENT
    assert left(target) == ["set.zip", "set.zip.json"]
    return size


def refused(server, target, match, digest="", url=None):
    with pytest.raises(UserError, match=match) as caught:
        fetch(url or server.url(), target, digest)
    assert not target.exists()
    return str(caught.value)


@pytest.mark.parametrize("digest", ["", MD5, hashlib.sha1(CONTENT).hexdigest(), SHA256, SHA256.upper()])
def test_a_whole_file(server, target, digest):
    assert fetched(server, target, digest) == len(CONTENT)
    assert server.asked("Range") == [None]
    fetched(server, target)
    assert len(server.requests) == 1  # it is there: nobody is asked again


def test_a_cut_transfer_goes_on_with_the_rest_of_the_same_version(server, target):
    server.plan = [("cut", 100_000), ("cut", 50_000), ("cut", 1)]
    fetched(server, target)
    assert server.asked("Range") == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-"]
    assert server.asked("If-Range") == [None, '"1"', '"1"', '"1"']


def test_it_goes_on_in_another_run_too(server, target, monkeypatch):
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    server.plan = [("cut", 100_000)]
    assert "0.1 MB are kept; check the network" in refused(server, target, "cut after 100000 of 300000 bytes")
    fetched(server, target)
    assert server.asked("Range") == [None, "bytes=100000-"]


def test_a_stall_is_cut_and_resumed(server, target, capsys):
    server.plan, begun = [("stall", 200_000)], time.monotonic()
    fetched(server, target)
    assert time.monotonic() - begun < 10  # the server would wait for 30 s
    assert server.asked("Range") == [None, "bytes=200000-"]
    assert "the line broke (it stalled); trying again in 0.001 s" in capsys.readouterr().err


def test_a_server_that_knows_no_ranges_starts_over(server, target):
    server.plan = [("cut", 100_000), ("all", 250_000), ("all",)]
    fetched(server, target)
    assert server.asked("Range") == [None, "bytes=100000-", "bytes=250000-"]


def test_a_file_that_changed_in_between_starts_over(server, target, monkeypatch):
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    server.plan = [("cut", 100_000)]
    server.files["/set.zip"], server.tag = OTHER, '"0"'
    refused(server, target, "cut after")
    server.files["/set.zip"], server.tag = CONTENT, '"1"'
    fetched(server, target, digest="")  # the bytes alone tell
    assert server.asked("If-Range") == [None, '"0"']


@pytest.mark.parametrize("size", [100_000, 300_000])
def test_a_changed_file_from_a_server_that_ignores_if_range_starts_over(server, target, size, monkeypatch):
    server.files["/set.zip"], server.tag = OTHER[:size], '"0"'
    server.plan = [("cut", 50_000), ("stubborn",)]

    def change(pause):
        server.files["/set.zip"], server.tag = CONTENT, '"1"'

    monkeypatch.setattr(transfer.time, "sleep", change)  # between two attempts
    fetched(server, target, digest="")
    assert server.asked("Range") == [None, "bytes=50000-", None]


def test_a_date_is_as_good_as_a_tag_and_a_weak_tag_is_none(server, target):
    server.tag, server.date = 'W/"1"', a_date()
    server.plan = [("cut", 100_000)]
    fetched(server, target)
    assert server.asked("If-Range") == [None, a_date()]


def test_nothing_is_resumed_without_a_validator(server, target):
    server.tag = None
    server.plan = [("cut", 100_000)]
    fetched(server, target)
    assert server.asked("Range") == [None, None]


def test_more_bytes_here_than_there_start_over(server, target):
    server.plan = [("cut", 100_000)]
    server.files["/set.zip"] = OTHER + OTHER
    part = target.with_name("set.zip.part")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "ATTEMPTS", 1)
        refused(server, target, "cut after")
    part.write_bytes(OTHER + OTHER[:-1])
    server.files["/set.zip"] = CONTENT  # the same tag: the server does not know better
    fetched(server, target, digest="")
    assert server.asked("Range") == [None, "bytes=599999-", None]  # 416 in between


def test_a_part_whole_but_not_yet_renamed_asks_nobody(server, target):
    fetched(server, target)
    os.rename(target, target.with_name("set.zip.part"))
    fetched(server, target)
    assert len(server.requests) == 1


@pytest.mark.parametrize("note", ["", "{", "[]", '{"url": 3}', None])
def test_a_part_without_a_sound_note_is_not_trusted(server, target, note):
    target.with_name("set.zip.part").write_bytes(OTHER[:1000])
    if note is not None:
        target.with_name("set.zip.json").write_text(note)
    fetched(server, target, digest="")


def test_another_address_starts_over(server, target):
    server.files["/b.zip"] = OTHER
    fetch(server.url("/b.zip"), target)
    assert target.read_bytes() == OTHER
    fetched(server, target)


def test_the_wrong_part_is_not_appended(server, target):
    server.plan = [("cut", 100_000), ("shifted",)]
    fetched(server, target)
    assert server.asked("Range") == [None, "bytes=100000-", None]


@pytest.mark.parametrize("more", [1, 1000])
def test_a_length_too_long_is_an_error(server, target, more):
    server.plan = [("lie", more)] * 20
    refused(server, target, "6 times in a row")
    assert len(server.requests) == 6


def test_a_length_too_short_is_seen_by_the_checksum(server, target):
    server.plan = [("lie", -1000)]
    refused(server, target, "wrong md5 checksum", MD5)
    fetched(server, target)  # the next run starts over


def test_a_wrong_checksum_removes_what_came(server, target):
    text = refused(server, target, "wrong sha256 checksum", "0" * 64)
    assert SHA256 in text
    assert "--archive" in text
    assert left(target) == []
    fetched(server, target)


@pytest.mark.parametrize("plan", [[("unsized",)], [("chunked",)], [("chunked", False), ("chunked",)]])
def test_a_file_of_unknown_size(server, target, plan):
    server.plan = plan
    assert fetched(server, target) is None


def test_servers_errors_that_pass(server, target):
    server.plan = [("code", 500), ("code", 503), ("busy", 0), ("garbage",), ("code", 429)]
    fetched(server, target)


def test_a_server_asks_for_patience(server, target, monkeypatch):
    pauses = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    monkeypatch.setattr(transfer, "PAUSE", 1.0)
    server.plan = [("busy", 7), ("busy", 10_000), ("code", 500), ("code", 500)]
    fetched(server, target)
    assert pauses == [7, PATIENCE, 4, 8]


def test_progress_starts_the_count_of_failures_anew(server, target, monkeypatch):
    pauses = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    server.plan = [("code", 500), ("cut", 1000), ("code", 500), ("cut", 1000), ("code", 500)] * 3
    fetched(server, target)
    assert len(pauses) == 15
    assert max(pauses) == pytest.approx(0.004)  # three in a row, at most


def test_a_server_that_starts_over_again_and_again_is_given_up(server, target):
    server.plan = [("all", 1000)] * 50
    refused(server, target, "6 times in a row")
    assert len(server.requests) == 6


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 204])
def test_answers_that_will_not_change(server, target, code):
    server.plan = [("code", code)]
    text = refused(server, target, f"the server answers {code}")
    assert "--url" in text
    assert "--archive" in text
    assert server.url() in text
    assert len(server.requests) == 1


def test_redirects_are_followed_with_the_range(server, target):
    server.files["/moved.zip"] = CONTENT
    server.plan = [("redirect", "/moved.zip"), ("cut", 1000), ("redirect", server.url("/moved.zip"))]
    fetched(server, target)
    assert [path for _, path, _ in server.requests] == ["/set.zip", "/moved.zip"] * 2
    assert server.asked("Range")[-1] == "bytes=1000-"


@pytest.mark.parametrize("where", ["ftp://127.0.0.1/x", "file:///etc/hostname"])
def test_redirects_elsewhere_are_not(server, target, where):
    server.plan = [("redirect", where)]
    refused(server, target, "http or https|302")


def test_a_redirect_in_a_circle_ends(server, target):
    server.plan = [("redirect", "/set.zip")] * 30
    refused(server, target, "the server answers 302")


@pytest.mark.parametrize(
    "url",
    ["", "x.zip", "/tmp/x.zip", "file:///x.zip", "ftp://a/x.zip", "http://", "http:///x", "http://a:b/", "http://[a/",
     "http://a/x y", "http://a/ü", "javascript:1", "http://a:0/"],
)  # fmt: skip
def test_what_is_no_address(server, target, url):
    with pytest.raises(UserError, match="no http or https address"):
        check_url(url)


def test_a_password_is_refused_and_not_shown(server, target):
    with pytest.raises(UserError, match="an address with a user's name or password") as caught:
        check_url("http://me:secret@127.0.0.1/x.zip")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("where", ["http://[bad/x", "http://h:99999/x", "http://a..b/x"])
def test_a_redirect_to_what_is_no_address(server, target, where):
    server.plan = [("redirect", where)] * 2
    refused(server, target, "cannot be used|no http or https address|no host's name")
    assert len(server.requests) == 1


@pytest.mark.parametrize("proxy", ["/foo", "127.0.0.1:abc", "socks5://127.0.0.1:9", "http://"])
def test_a_proxy_that_cannot_be_is_no_broken_line(server, target, monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    text = refused(server, target, "an address on the way cannot be used")
    assert "check http_proxy" in text


@pytest.mark.parametrize("digits", [400, 5000])
def test_numbers_that_no_file_has(server, target, digits):
    server.plan = [("busy", "9" * digits), ("numbered", "9" * digits)]
    assert fetched(server, target) is None


def test_what_the_server_says_is_one_printable_line(server, target, capsys):
    server.plan = [("says", 503, "\x1b[2J" + "x" * 3000), ("says", 404, "\x1b[2J" + "x" * 3000)]
    text = refused(server, target, r"the server answers 404 \\x1b\[2Jx+…")
    told = capsys.readouterr().err
    assert "answers 503 \\x1b[2J" in told
    assert max(map(len, (told, text))) < 600
    assert "\x1b" not in told + text


def test_a_rest_without_the_tag_starts_over(server, target):
    """The files are of one size: nothing else would tell that the rest is another version's."""
    server.plan = [("cut", 100_000), ("untagged", OTHER)]
    fetched(server, target, digest="")
    assert server.asked("Range") == [None, "bytes=100000-", None]


def test_an_endless_stream_stops_before_the_disk_is_full(server, target, monkeypatch):
    monkeypatch.setattr(transfer, "CHECKED_EVERY", 1 << 20)
    usage = shutil.disk_usage(target.parent)
    monkeypatch.setattr(
        transfer.shutil, "disk_usage", lambda folder: usage._replace(free=10_000_000 - transfer_size(target))
    )
    server.plan = [("endless",)]
    with pytest.raises(UserError, match="GB are free"):
        fetch(server.url(), target, growth=1.0)
    assert left(target) == []  # nothing that no later run could go on with


def transfer_size(target):
    part = target.with_name("set.zip.part")
    return part.stat().st_size if part.exists() else 0


def test_a_part_that_cannot_be_resumed_does_not_stay(server, target, monkeypatch):
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    server.tag, server.plan = None, [("cut", 100_000)]
    assert "are kept" not in refused(server, target, "cut after")
    assert left(target) == []


def test_a_note_of_an_empty_file_without_the_file(server, target):
    """As a process leaves it that is killed before the first byte."""
    target.with_name("set.zip.json").write_text(json.dumps({"url": server.url(), "size": 0, "validator": '"1"'}))
    fetched(server, target)


def test_the_size_beforehand_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(transfer, "HEAD_TIMEOUT", 0.1)
    monkeypatch.setattr(transfer, "TIMEOUT", 30)
    server.mute, begun = True, time.monotonic()
    assert told_size(server.url()) is None
    assert time.monotonic() - begun < 5


def test_a_host_whose_name_cannot_be(server, target):
    refused(server, target, "no host's name", url="http://a..b/x.zip")


def test_no_network(target):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refused, as where nobody is
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x.zip"
        text = refused(None, target, "no answer from 127.0.0.1.*6 times in a row", url=url)
    assert "check the network and run the same command again" in text


def test_a_proxy_from_the_environment_is_used(server, target, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url(""))
    fetch("http://no.such.host.invalid/set.zip", target, MD5)
    assert target.read_bytes() == CONTENT
    assert [path for _, path, _ in server.requests] == ["http://no.such.host.invalid/set.zip"]


def test_no_proxy_is_heeded(server, target, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetched(server, target)


def test_a_disk_too_small_is_seen_before_the_first_byte(server, target, monkeypatch):
    usage = shutil.disk_usage(target.parent)._replace(free=len(CONTENT) * 2 - 1)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="need 0.00 GB, 0.00 GB are free"):
        fetch(server.url(), target, MD5, growth=1.0)
    assert target.with_name("set.zip.part").exists() is False
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: usage._replace(free=len(CONTENT) * 2))
    fetch(server.url(), target, MD5, growth=1.0)


def test_a_full_disk_is_no_broken_line(server, target, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer, "open", full, raising=False)
    with pytest.raises(OSError, match="No space"):
        fetch(server.url(), target)
    assert len(server.requests) == 1


def test_the_size_is_told_beforehand(server):
    assert told_size(server.url()) == len(CONTENT)
    server.plan = [("redirect", "/moved.zip")]
    assert told_size("http://127.0.0.1:9/x.zip") is None


def test_progress_is_told_in_megabytes_with_rate_and_time_left(server, target, monkeypatch, capsys):
    for module in (sources, transfer):
        monkeypatch.setattr(module, "MB", 1000)
    monkeypatch.setattr(
        transfer.cli.Progress,
        "update",
        lambda self, done: (setattr(self, "done", done), self._print(self.start + 1)),
    )
    fetched(server, target)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("fetch set.zip  300/300 MB")
    assert any("/s" in line and "left" in line for line in lines)
