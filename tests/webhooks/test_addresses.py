"""Where webhooks may go, by the text of a URL and by the addresses of a host."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from runs_es.webhooks.addresses import AddressRefused, check_address, check_url

PRIVATE = [
    ("127.0.0.1", "loopback"),
    ("127.255.0.9", "loopback"),
    ("0.0.0.0", "unspecified"),
    ("10.1.2.3", "private"),
    ("172.16.0.1", "private"),
    ("192.168.1.1", "private"),
    ("100.64.0.1", "reserved"),
    ("169.254.169.254", "link-local"),
    ("224.0.0.1", "multicast"),
    ("239.1.2.3", "multicast"),
    ("240.0.0.1", "private|reserved"),
    ("255.255.255.255", "private|reserved"),
    ("192.0.2.1", "private"),
    ("198.18.0.1", "private"),
    ("::1", "loopback"),
    ("::", "unspecified"),
    ("fe80::1", "link-local"),
    ("fe80::1%eth0", "link-local"),
    ("fc00::1", "private"),
    ("fd12:3456::1", "private"),
    ("fec0::1", "private"),
    ("ff02::1", "multicast"),
    ("::ffff:127.0.0.1", "loopback"),
    ("::ffff:10.0.0.1", "private"),
    ("::7f00:1", "reserved"),
    ("64:ff9b::7f00:1", "loopback"),
    ("64:ff9b::a9fe:a9fe", "link-local"),
    ("2002:7f00:1::", "tunnel"),
    ("2001:0:7f00:1::", "tunnel"),
    ("2001:db8::1", "private"),
]
PUBLIC = ["93.184.215.14", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize(("text", "kind"), PRIVATE)
def test_an_address_that_is_not_public_is_refused_and_named(text: str, kind: str) -> None:
    with pytest.raises(AddressRefused, match=f"is a[n]? ({kind})") as refused:
        check_address(ip_address(text), [])
    assert "RUNS_ES_WEBHOOK_ALLOWED_NETWORKS" in str(refused.value)


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_is_not_refused(text: str) -> None:
    check_address(ip_address(text), [])


def test_a_network_of_the_setting_is_allowed_and_no_other() -> None:
    allowed = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    for text in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1"):
        check_address(ip_address(text), allowed)
    for text in ("127.0.0.1", "192.168.0.1", "::1", "fc00::1"):
        with pytest.raises(AddressRefused):
            check_address(ip_address(text), allowed)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/",
        "http://LOCALHOST:8080/hook",
        "http://localhost./",
        "http://a.localhost/",
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.0.0.1/",
        "http://017700000001/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]:9/",
        "http://[fe80::1%25eth0]/",
        "http://169.254.169.254/latest/meta-data",
    ],
)
def test_a_url_that_spells_an_address_that_is_not_public_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^webhook: .*(public addresses only|can be read)"):
        check_url(url, [])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "2048 characters"),
        (5, "2048 characters"),
        ("https://example.org/" + "a" * 2048, "2048 characters"),
        ("ftp://example.org/", "http:// or https://"),
        ("file:///etc/passwd", "http:// or https://"),
        ("/hook", "http:// or https://"),
        ("https://", "http:// or https://"),
        ("https:///hook", "http:// or https://"),
        ("https://user:secret@example.org/", "user name or password"),
        ("https://user@example.org/", "user name or password"),
        ("https://@example.org/", "user name or password"),
        ("https://example.org/a b", "without spaces"),
        ("https://example.org/\r\nX-Injected: 1", "without spaces"),
        ("https://example.org\\@127.0.0.1/", "without spaces"),
        ("https://exämple.org/", "beyond ASCII"),
        ("https://example.org:99999/", "can be read"),
        ("https://example.org:0/", "can be read"),
        ("https://[::1/", "can be read"),
    ],
)
def test_a_url_that_nothing_can_be_sent_to_is_refused_with_its_reason(url: object, why: str) -> None:
    with pytest.raises(ValueError, match=f"^webhook: .*{why}"):
        check_url(url, [])


def test_a_name_is_accepted_and_localhost_where_its_network_is() -> None:
    check_url("https://hooks.example.org:8443/runs?token=1", [])
    check_url("http://10.example.org/", [])
    check_url("http://localhost:9/", [ip_network("127.0.0.0/8")])
