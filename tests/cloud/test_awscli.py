"""The AWS command line as a program: a script in its place shows what it is given, the real one copies a file."""

import shutil

import pytest

from cloudreg.cloud.awscli import aws_cli
from cloudreg.cloud.s3 import matching_keys
from cloudreg.errors import InputError
from object_store import KEY, SECRET


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a program named aws on the PATH; return what it is to do, as a file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "aws").write_text('#!/bin/sh\nfor word; do echo "[$word]"; done > "$0.words"\n. "$0.does"\n')
    (folder / "aws").chmod(0o755)
    (folder / "aws.does").write_text("")
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder / "aws"


@pytest.mark.parametrize("words", [("s3", "cp", "a b", "$HOME"), (["s3", "cp", "a b", "$HOME"],)])
def test_words_come_as_they_are(program, words):
    aws_cli(*words)
    assert program.with_name("aws.words").read_text().split("\n")[:-1] == ["[s3]", "[cp]", "[a b]", "[$HOME]"]


def test_its_failure_is_a_runtime_error_with_its_last_words(program, capfd):
    program.with_name("aws.does").write_text("echo working >&2; echo 'no such bucket' >&2; exit 254")
    with pytest.raises(RuntimeError, match=r"^aws s3 'l s' ended with exit status 254: no such bucket$") as caught:
        aws_cli("s3", "l s")
    assert caught.value.exit_code == 254
    assert capfd.readouterr().err == "working\nno such bucket\n"


def test_where_it_is_not_installed_it_says_how_to(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="run pipx install awscli"):
        aws_cli("s3", "ls")


@pytest.mark.skipif(shutil.which("aws") is None, reason="the AWS command line is not installed")
def test_the_real_one_copies_a_file_into_a_bucket(s3_server, monkeypatch, tmp_path):
    for name, value in {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    (tmp_path / "file").write_text("text")
    aws_cli("s3", "cp", "--quiet", str(tmp_path / "file"), "s3://private/cli/file")
    assert list(matching_keys("private", "cli/")) == ["cli/file"]
    with pytest.raises(RuntimeError):
        aws_cli("s3", "ls", "s3://no-such-bucket")
