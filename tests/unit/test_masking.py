"""What is shown of URLs, options and other libraries' messages: nothing secret."""

from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zenray.masking import masked_text, masked_url, secrets_of, split_login, without

# Whatever a password may hold, raw; a literal that looks like a reference is nothing special here.
passwords = st.text(min_size=1)


@given(passwords)
def test_no_password_of_a_url_is_shown(password):
    assert masked_url(f"postgresql://me:{password}@host/db") == "postgresql://me:***@host/db"
    assert split_login(f"postgresql://me:{password}@host/db") == ("postgresql://host/db", "me", password)


@given(st.text(st.characters(exclude_categories=["Zs", "Zl", "Zp", "Cc"]), min_size=1))
def test_no_login_of_a_url_within_a_text_is_shown(login):
    assert masked_text(f"no answer from http://{login}@host: refused") == "no answer from http://***@host: refused"


@given(
    passwords.filter(lambda p: "&" not in p), st.sampled_from(["sslpassword", "X-Amz-Signature", "api_key", "passfile"])
)
def test_no_secret_parameter_of_a_url_is_shown(value, name):
    assert masked_url(f"postgresql://host/db?a=1&{name}={value}&b=2") == f"postgresql://host/db?a=1&{name}=***&b=2"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("postgresql://user:@host/db", "postgresql://user:@host/db"),
        ("postgresql://user@corp:pw@host/db", "postgresql://user@corp:***@host/db"),
        ("https://tok@host/x?a=1&api_key=k", "https://***@host/x?a=1&api_key=***"),
        ("https://tok@host:8080/x", "https://***@host:8080/x"),
        ("s3://key:se/cr@et@bucket/p", "s3://key:***@bucket/p"),
        ("https://host/npm/package@1.2/x.csv", "https://host/npm/package@1.2/x.csv"),
        ("https://host/x#access_token=k", "https://host/x#access_token=***"),
        ("https://host/x?token=a#b;c", "https://host/x?token=***"),
        ("abfs://container@account.dfs/x", "abfs://container@account.dfs/x"),
        ("sqlite:////home/me/ledger.db", "sqlite:////home/me/ledger.db"),
        ("local", "local"),
    ],
)
def test_what_is_no_secret_stays(url, shown):
    assert masked_url(url) == shown


def test_a_secret_parameter_within_a_text_ends_with_its_word():
    text = "GET https://h/x?a=1&sig=abc%2F failed; is key=value allowed?"
    assert masked_text(text) == "GET https://h/x?a=1&sig=*** failed; is key=value allowed?"


@given(
    st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=4),
    st.sampled_from([str, quote, quote_plus, lambda p: quote(p, safe=""), lambda p: repr(p)[1:-1]]),
)
def test_a_password_is_taken_out_of_a_text_however_it_is_written(password, written):
    secrets = secrets_of(f"postgresql://me:{quote(password, safe='')}@host/db")
    assert without(f"<{written(password)}>", secrets) == "<***>"


def test_secrets_are_those_of_urls_and_options_however_deep_they_lie():
    assert secrets_of("http://u:p%2Fw@h/x?page=2&key=k1") == {"p%2Fw", "k1"}
    options = {"key": "k", "token": {"private_key": "k2", "id": 12345}, "region": "eu", "list": [{"secret": "s"}]}
    options["headers"] = {"X-Proxy": "h"}
    assert secrets_of(options) == {"k", "k2", "12345", "s", "h"}
    login = "AccountName=a;AccountKey=Zm9v==;SharedAccessSignature=sv=1&sig=x;BlobEndpoint=http://b"
    assert secrets_of({"connection_string": login}) == {login, "Zm9v==", "sv=1&sig=x"}
    assert secrets_of({"anon": True, "key": "", "url": "s3://bucket/x"}) == frozenset()


def test_a_short_secret_is_taken_out_as_a_word_only():
    assert without("a table: password 'a', u:a@h", {"a", ""}) == "*** table: password '***', u:***@h"


def test_of_secrets_that_begin_alike_nothing_is_left():
    assert without("AKIA and AKIA/more", ["AKIA", "AKIA/more"]) == "*** and ***"
    assert without("nothing is known", []) == "nothing is known"
