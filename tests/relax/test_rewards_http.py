"""Scores from a server: what is sent, what is retried, and what a bad or hostile one cannot do."""

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from reward_server import ScoreServer, serving

from relax.errors import UserError
from relax.rewards import RewardFailed, Sample, build_rewards
from relax.rewards.http_endpoint import EndpointError, HttpEndpoint


@pytest.fixture
def server() -> Iterator[ScoreServer]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relax.rewards.http_endpoint._FIRST_PAUSE_SECONDS", 0.0)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_it_is_a_reward_by_name_and_sends_only_what_it_was_told_to(server: ScoreServer) -> None:
    samples = [Sample("p", "abc", {"answer": "a", "secret": "s"}, [1]), Sample("q", "", {"answer": "b"}, [2])]
    mapping = {"class_path": "http", "init_args": {"url": server.url, "columns": ["answer"]}, "weight": 0.5}
    scores = build_rewards([mapping, lambda completion: 1.0]).score(samples)
    assert scores.by_function["http"] == [3.0, None]
    assert scores.total == [2.5, 1.0]
    assert server.bodies == [
        {"prompts": ["p", "q"], "completions": ["abc", ""], "columns": [{"answer": "a"}, {"answer": "b"}]}
    ]
    assert build_rewards(f"http={server.url}/scores:2").score(samples[:1]).total == [6.0]
    assert server.bodies[1]["columns"] == [{}]


def test_it_asks_again_where_that_can_help(server: ScoreServer) -> None:
    assert HttpEndpoint(f"{server.url}/busy/2")(["p"], ["abc"]) == [3]
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("path", "attempts", "message"),
    [
        ("busy/99", 3, "answered 503 Service Unavailable"),
        ("code/429", 3, "answered 429"),
        ("code/400", 1, "answered 400 Bad Request"),
        ("code/401", 1, "answered 401"),
        ("code/302", 1, "answered 302"),
        ("code/307", 1, "answered 307"),
        ("text", 1, "answered no JSON: b'<html>'"),
        ("other", 1, r"must answer \{\"scores\": \[...\]\}, and answered"),
        ("large", 1, "answered with more than 16777216 bytes"),
        ("cut", 3, "cut its answer short"),
    ],
)
def test_a_bad_answer_is_told_and_a_redirect_not_followed(
    server: ScoreServer, path: str, attempts: int, message: str
) -> None:
    with pytest.raises(EndpointError, match=message):
        HttpEndpoint(f"{server.url}/{path}", retries=2)(["p"], ["abc"])
    assert len(server.bodies) == attempts


@pytest.mark.parametrize("path", ["slow", "drip"])
def test_a_server_that_takes_its_time_is_given_up(server: ScoreServer, path: str) -> None:
    start = time.monotonic()
    with pytest.raises(EndpointError, match="timed out|took longer than"):
        HttpEndpoint(f"{server.url}/{path}", timeout_seconds=0.4, retries=0)(["p"], ["abc"])
    assert time.monotonic() - start < 1.5


def test_a_server_that_is_not_there_stops_the_run_with_its_address() -> None:
    with serving() as gone:
        url = gone.url
    with pytest.raises(
        RewardFailed, match=rf"reward 'http' raised EndpointUnavailableError: {url}/x cannot be reached .*refused"
    ):
        build_rewards(f"http={url}/x?key=secret").score([Sample("p", "c", {})])


def test_the_key_in_an_address_is_not_told() -> None:
    with pytest.raises(EndpointError) as caught:
        HttpEndpoint("http://127.0.0.1:9/x?key=secret", retries=0)(["p"], ["c"])
    assert "secret" not in str(caught.value)


def test_a_token_comes_from_the_environment(server: ScoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "t0ken")
    endpoint = HttpEndpoint(server.url, token_variable="JUDGE_TOKEN")
    assert endpoint(["p"], ["abc"]) == [3]
    assert server.headers[0]["Authorization"] == "Bearer t0ken"
    with pytest.raises(UserError, match=r"would travel unencrypted to judge\.example; use https"):
        HttpEndpoint("http://judge.example/x", token_variable="JUDGE_TOKEN")
    monkeypatch.delenv("JUDGE_TOKEN")
    with pytest.raises(UserError, match="token_variable=JUDGE_TOKEN is not set"):
        HttpEndpoint(server.url, token_variable="JUDGE_TOKEN")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "host/x", "https://", "https://me:pw@host/x"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(UserError, match="--rewards: an endpoint's address") as caught:
        HttpEndpoint(url)
    assert "pw" not in str(caught.value).replace("passwd", "")


def test_a_certificate_that_nobody_signed_is_refused_at_once(tmp_path: Path) -> None:
    with serving(_self_signed(tmp_path)) as server:
        with pytest.raises(EndpointError, match="CERTIFICATE_VERIFY_FAILED"):
            HttpEndpoint(server.url)(["p"], ["abc"])
        assert server.bodies == [], "nothing was sent"


def _self_signed(folder: Path) -> ssl.SSLContext:
    pytest.importorskip("cryptography")
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (folder / "server.pem").write_bytes(private + public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context
