//! Standard proxies: a real tinyproxy, for http and by CONNECT for https.

use std::process::{Child, Command, Stdio};

use larder::fsio::{WriteOptions, write_atomic};

use crate::bench::{Bench, KINDS};
use crate::tls::{Https, free_port, program, wait_for};

/// A running proxy; ends when dropped.
struct Proxy {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Proxy {
    /// Starts it with more lines in its configuration; `None`, loudly, where it is not installed.
    fn start(more: &str) -> Option<Self> {
        let program = program("tinyproxy")?;
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let port = free_port();
        let log = dir.path().join("log");
        let config = format!(
            "Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nAllow 127.0.0.1\nLogFile \"{}\"\nLogLevel Connect\n{more}\n",
            log.display()
        );
        let path = dir.path().join("proxy.conf");
        write_atomic(&path, config.as_bytes(), &WriteOptions::default()).unwrap();
        let mut command = Command::new(program);
        let child = command.arg("-d").arg("-c").arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let proxy = Self { child, dir, port };
        wait_for(port);
        Some(proxy)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn log(&self) -> String {
        fs_err::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn http_goes_through_the_proxy_unless_it_is_excepted() {
    let Some(proxy) = Proxy::start("") else { return };
    for kind in KINDS {
        let url = proxy.url();
        for (variables, is_used) in [
            (vec![("HTTP_PROXY", url.as_str())], true),
            (vec![("http_proxy", url.as_str())], true),
            (vec![("ALL_PROXY", url.as_str())], true),
            (vec![("HTTP_PROXY", url.as_str()), ("NO_PROXY", "127.0.0.1,localhost")], false),
            (vec![("HTTPS_PROXY", url.as_str())], false),
        ] {
            let bench = Bench::locked(kind);
            bench.machine.larder_with(&variables, &["apply", "--yes"]).must_be(0);
            assert!(bench.has_it());
            let served = bench.server.served();
            assert!(!served.is_empty());
            for served in served {
                assert_eq!(served.asked.header("via").is_some(), is_used, "{kind:?}, {variables:?}: {served:?}");
            }
        }
    }
}

#[test]
fn https_goes_through_the_proxy_by_connect() {
    let Some(https) = Https::start("DNS:localhost", "") else { return };
    let Some(proxy) = Proxy::start(&format!("ConnectPort {}", https.port)) else { return };
    let machine = crate::tls::machine(&format!("https://localhost:{}/files/weights.bin", https.port));
    let (authority, url) = (https.authority(), proxy.url());
    let variables = [("SSL_CERT_FILE", authority.to_str().unwrap()), ("HTTPS_PROXY", &url)];
    machine.larder_with(&variables, &["apply", "--yes"]).must_be(0);
    assert!(machine.path("plain/weights.bin").exists());
    assert!(proxy.log().contains(&format!("CONNECT localhost:{}", https.port)), "{}", proxy.log());
}

#[test]
fn a_proxy_that_wants_a_login_is_told_and_gets_it() {
    let Some(proxy) = Proxy::start("BasicAuth lab secretword") else { return };
    let bench = Bench::locked(crate::bench::Kind::Http);
    let without = proxy.url();
    let said = bench.machine.larder_with(&[("HTTP_PROXY", &without)], &["apply", "--yes"]);
    assert!(
        said.code != Some(0) && said.out.contains("answered 407") && said.out.contains("NAME:PASSWORD@HOST"),
        "{said}"
    );
    assert_eq!(bench.server.served().len(), 0);
    let with = format!("http://lab:secretword@127.0.0.1:{}", proxy.port);
    let said = bench.machine.larder_with(&[("HTTP_PROXY", &with)], &["-vv", "apply", "--yes"]).must_be(0);
    assert!(bench.has_it() && !said.to_string().contains("secretword"), "{said}");
}

#[test]
fn a_proxy_that_is_away_is_no_server_that_is_away_for_ever() {
    let bench = Bench::locked(crate::bench::Kind::Http);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let said = bench.machine.larder_with(&[("HTTP_PROXY", &nobody)], &["apply", "--yes"]);
    assert!(said.code != Some(0) && said.out.contains("cannot be reached"), "{said}");
    assert_eq!(bench.server.served().len(), 0, "what the proxy cannot bring is not fetched past it");
    bench.apply().must_be(0);
}
