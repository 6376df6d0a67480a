"""The flags that many commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from apiary.errors import SettingsError
from apiary_cli.terminal import flags


def test_a_flag_names_the_broker_whatever_cluster_the_file_names(tmp_path: Path) -> None:
    file = tmp_path / "apiary.toml"
    file.write_text("[broker]\nhosts = ['a', 'b']\n")
    args = argparse.Namespace(config=file, overrides={}, host="c", port=None)
    assert flags.settings_of(args).broker.names == "c:1883"
    args.host = None
    assert flags.settings_of(args).broker.names == "a:1883, b:1883"


def test_hosts_and_urls_are_checked_where_they_are_typed() -> None:
    assert flags.host("[fd00::5]", "--san") == "fd00::5"
    with pytest.raises(SettingsError, match="--san 'a b' is neither"):
        flags.host("a b", "--san")
    assert flags.https_url("https://[fd00::5]:8443/", "--enrolment") == "https://[fd00::5]:8443"
    with pytest.raises(SettingsError, match=r"--enrolment .*expected https://HOST:PORT"):
        flags.https_url("https://a:b", "--enrolment")
