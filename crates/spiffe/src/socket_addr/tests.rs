use super::*;

fn refuses(text: &str, fault: EndpointError) {
    assert_eq!(parse_endpoint(text), Err(fault), "{text:?}");
    if fault != EndpointError::TcpHost {
        assert_eq!(parse_broker_endpoint(text), Err(fault), "{text:?}");
    }
}

#[test]
fn we_07_unix_is_an_absolute_path_without_authority() {
    for text in ["unix:///a/b.sock", "unix:/a/b.sock"] {
        assert_eq!(parse_endpoint(text), Ok(Endpoint::Unix("/a/b.sock".into())));
    }
    for text in ["unix://a/b", "unix://foo", "unix://u:p@h/a"] {
        refuses(text, EndpointError::UnixAuthority);
    }
    for text in ["unix:a/b", "unix:", "unix://", "unix:///", "unix:/"] {
        refuses(text, EndpointError::UnixPath);
    }
    for text in ["unix:///a?q", "unix:///a#f", "unix:///a?", "unix:///a#"] {
        refuses(text, EndpointError::Extra);
    }
}

#[test]
fn we_08_tcp_is_a_literal_address_and_port() {
    let tcp = |address: &str| Endpoint::Tcp(address.parse().unwrap());
    assert_eq!(
        parse_endpoint("tcp://127.0.0.1:8000"),
        Ok(tcp("127.0.0.1:8000"))
    );
    assert_eq!(parse_endpoint("tcp://[::1]:8000"), Ok(tcp("[::1]:8000")));
    for text in ["tcp://127.0.0.1:8000/foo", "tcp://127.0.0.1:8000/"] {
        refuses(text, EndpointError::TcpPath);
    }
    for text in [
        "tcp://127.0.0.1:8000?q",
        "tcp://127.0.0.1:8000#f",
        "tcp://u@127.0.0.1:8000",
    ] {
        refuses(text, EndpointError::Extra);
    }
    for text in [
        "tcp://127.0.0.1",
        "tcp://1.2.3.4:",
        "tcp://1.2.3.4:0",
        "tcp://1.2.3.4:99999",
        "tcp://1.2.3.4:+80",
    ] {
        refuses(text, EndpointError::TcpPort);
    }
    for text in ["tcp:opaque", "tcp:1.2.3.4:80", "tcp://", "tcp:"] {
        refuses(text, EndpointError::TcpAuthority);
    }
    for text in [
        "tcp://localhost:80",
        "tcp://foo:80",
        "tcp://::1:80",
        "tcp://[127.0.0.1]:80",
        "tcp://1.2.3:80",
    ] {
        refuses(text, EndpointError::TcpHost);
    }
}

#[test]
fn be_04_broker_endpoints_may_be_named() {
    assert_eq!(
        parse_broker_endpoint("tcp://localhost:80"),
        Ok(Endpoint::TcpName("localhost".into(), 80))
    );
    assert_eq!(
        parse_broker_endpoint("tcp://a.example:80"),
        Ok(Endpoint::TcpName("a.example".into(), 80))
    );
    for text in [
        "tcp://-a:80",
        "tcp://a..b:80",
        "tcp://a_b:80",
        "tcp://1.2.3.400:80",
        "tcp://:80",
    ] {
        assert_eq!(
            parse_broker_endpoint(text),
            Err(EndpointError::TcpHost),
            "{text}"
        );
    }
}

#[test]
fn we_07_we_08_other_schemes_and_characters_are_refused() {
    for text in [
        "other:///p",
        "http://h/p",
        "blah",
        "UNIX:///a",
        "npipe:name",
    ] {
        refuses(text, EndpointError::Scheme);
    }
    for text in [
        "unix:///a\tb",
        "unix:///caf\u{e9}",
        "unix:///a b",
        "\tunix:///a",
    ] {
        refuses(text, EndpointError::NotUri);
    }
    refuses("", EndpointError::Scheme);
    refuses(
        &format!("unix:///{}", "a".repeat(5000)),
        EndpointError::NotUri,
    );
}

#[test]
fn endpoints_print_as_they_parse() {
    for text in [
        "unix:///a/b.sock",
        "tcp://127.0.0.1:8000",
        "tcp://[::1]:8000",
    ] {
        assert_eq!(parse_endpoint(text).unwrap().to_string(), text);
    }
}
