//! https on a real nginx with a certificate that nobody but the test vouches for.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use larder::fsio::{WriteOptions, write_atomic};

use crate::bench::{Bench, Kind, content};
use crate::machine::Machine;
use crate::skip::skipped;

/// An nginx on loopback that serves the model by https; ends when dropped.
pub(crate) struct Https {
    child: Child,
    dir: tempfile::TempDir,
    pub(crate) port: u16,
}

impl Https {
    /// Starts it with a certificate for `name`; `None`, loudly, where a part is missing.
    pub(crate) fn start(name: &str, locations: &str) -> Option<Self> {
        let (nginx, openssl) = (program("nginx")?, program("openssl")?);
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        certify(&openssl, dir.path(), name);
        let write =
            |path: &str, bytes: &[u8]| write_atomic(&dir.path().join(path), bytes, &WriteOptions::default()).unwrap();
        write("root/files/weights.bin", &content());
        write("root/files/large.bin", &large());
        let port = free_port();
        let place = dir.path().display();
        write(
            "nginx.conf",
            format!(
                "daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;\n\
                 events {{ worker_connections 64; }}\n\
                 http {{ log_format with '$connection $request_method $status'; access_log {place}/access.log with; client_body_temp_path {place}/b; proxy_temp_path {place}/p; \
                 fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;\n\
                 server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {place}/cert.pem; ssl_certificate_key {place}/key.pem; \
                 root {place}/root; {locations} }} }}\n"
            )
            .as_bytes(),
        );
        let mut command = Command::new(nginx);
        command.arg("-c").arg(dir.path().join("nginx.conf")).arg("-e").arg(dir.path().join("error.log"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let https = Self { child, dir, port };
        wait_for(port);
        Some(https)
    }

    /// The file of the authority that signed the certificate.
    pub(crate) fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub(crate) fn requests(&self) -> usize {
        self.log().lines().count()
    }

    /// How many TCP connections content came over.
    fn connections(&self) -> usize {
        let log = self.log();
        let connections = log.lines().filter(|line| line.contains(" GET ")).filter_map(|line| line.split(' ').next());
        connections.collect::<BTreeSet<_>>().len()
    }

    fn log(&self) -> String {
        fs_err::read_to_string(self.dir.path().join("access.log")).unwrap_or_default()
    }
}

impl Drop for Https {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that the tests run against.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"];
    let found = folders.map(|folder| Path::new(folder).join(name)).into_iter().find(|path| path.is_file());
    if found.is_none() {
        skipped(&format!("{name} is not installed; install it with scripts/test-parts"));
    }
    found
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn wait_for(port: u16) {
    let begin = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(60), "nobody listens at {port}");
        std::thread::yield_now();
    }
}

/// An authority, and a certificate of it for `name`.
fn certify(openssl: &Path, dir: &Path, name: &str) {
    let run = |line: &str| {
        let output = Command::new(openssl).args(line.split(' ')).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=Lab -days 2"));
    run(&format!("req -new {key} -keyout key.pem -out csr.pem -subj /CN=larder-test"));
    let names = format!("subjectAltName={name}\n");
    write_atomic(&dir.join("names"), names.as_bytes(), &WriteOptions::default()).unwrap();
    run("x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile names");
}

/// So large that it comes in parts.
fn large() -> Vec<u8> {
    content().iter().copied().cycle().take(20 << 20).collect()
}

/// A machine that wants the model from `url`.
pub(crate) fn machine(url: &str) -> Machine {
    machine_that_wants(url, &content(), "")
}

fn machine_that_wants(url: &str, content: &[u8], sources: &str) -> Machine {
    let (size, sha256) = (content.len(), larder::digest::Sha256::of(content));
    let name = if url.ends_with("large.bin") { "large.bin" } else { "weights.bin" };
    let inventory = "manifests = [\"manifests/*.toml\"]\nmachine = \"pc\"\n[stores]\nplain = { layout = \"folder\", path = \"~/plain\" }\n\
                     [machines]\npc = {}\n[sources]\nretries = 1\nretry-pause = \"10 ms\"\n";
    let manifest = format!(
        "[[section]]\nname = \"lab\"\ntitle = \"Lab\"\n[[artifact]]\nname = \"model\"\nstore = \"plain\"\nsource = \"{url}\"\n  \
         [[artifact.file]]\n  path = \"{name}\"\n  size = {size}\n  sha256 = \"{sha256}\"\n"
    );
    let machine = Machine::new(&format!("{inventory}{sources}"), &manifest);
    machine.larder(&["lock", "--offline"]).must_be(0);
    machine
}

fn refusal(machine: &Machine, variables: &[(&str, &str)]) -> String {
    let said = machine.larder_with(variables, &["plan", "--json"]).must_be(0);
    let obstacle = &said.json()["artifacts"][0]["obstacles"][0];
    format!("{}\n{}", obstacle["reason"].as_str().unwrap(), obstacle["hint"].as_str().unwrap_or("(no hint)"))
}

#[test]
fn a_certificate_of_the_labs_own_authority_is_refused_unless_it_is_trusted() {
    let Some(https) = Https::start("DNS:localhost", "") else { return };
    let url = format!("https://localhost:{}/files/weights.bin", https.port);
    let machine = machine(&url);
    let told = refusal(&machine, &[]).replace(&https.port.to_string(), "PORT");
    insta::assert_snapshot!(told, @"
    https://localhost:PORT is not trusted: nobody whom this machine trusts has signed its certificate
    if a mirror or proxy of the lab has its own authority, name a file with all trusted certificates in SSL_CERT_FILE
    ");
    assert_eq!(https.requests(), 0, "nothing was asked over a connection that is not trusted");
    let said = machine.larder(&["apply", "--yes"]);
    assert!(said.code != Some(0) && !machine.path("plain/weights.bin").exists(), "{said}");

    let authority = https.authority();
    let trusting = [("SSL_CERT_FILE", authority.to_str().unwrap())];
    machine.larder_with(&trusting, &["apply", "--yes"]).must_be(0);
    assert!(fs_err::read(machine.path("plain/weights.bin")).unwrap() == *content());
}

/// The server would like to have all of it over one connection by HTTP/2, where the slowest packet holds up everything.
#[test]
fn several_connections_are_several_also_where_the_server_speaks_http2() {
    let Some(https) = Https::start("DNS:localhost", "limit_rate 8m;") else { return };
    let url = format!("https://localhost:{}/files/large.bin", https.port);
    let machine = machine_that_wants(&url, &large(), "first-connections = 4\n");
    let authority = https.authority();
    machine.larder_with(&[("SSL_CERT_FILE", authority.to_str().unwrap())], &["apply", "--yes"]).must_be(0);
    assert!(fs_err::read(machine.path("plain/large.bin")).unwrap() == large());
    assert!(https.connections() >= 4, "{} connections\n{}", https.connections(), https.log());
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let Some(https) = Https::start("DNS:elsewhere.lab", "") else { return };
    let machine = machine(&format!("https://localhost:{}/files/weights.bin", https.port));
    let authority = https.authority();
    let told = refusal(&machine, &[("SSL_CERT_FILE", authority.to_str().unwrap())]);
    assert!(told.contains("is not trusted: ") && told.contains("localhost"), "{told}");
    assert_eq!(https.requests(), 0);
}

#[test]
fn https_where_nobody_speaks_it_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let _ = connection.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let told = refusal(&machine(&format!("https://localhost:{port}/files/weights.bin")), &[]);
    assert!(told.contains("sent an answer that makes no sense: TLS: "), "{told}");
}

#[test]
fn nothing_is_followed_from_https_to_http() {
    let bench = Bench::new(Kind::Http);
    let down = format!("location / {{ return 302 http://localhost:{}/files/weights.bin; }}", bench.server.port);
    let Some(https) = Https::start("DNS:localhost", &down) else { return };
    let machine = machine("hf:lab/model@00c0ffee00000000000000000000000000c0ffee/weights.bin");
    let (authority, hub) = (https.authority(), format!("https://localhost:{}", https.port));
    let variables =
        [("SSL_CERT_FILE", authority.to_str().unwrap()), ("HF_ENDPOINT", &hub), ("HF_TOKEN", "hf_secretsecret")];
    let said = machine.larder_with(&variables, &["apply", "--yes"]);
    assert_ne!(said.code, Some(0), "{said}");
    let told = refusal(&machine, &variables).replace(&bench.server.port.to_string(), "PORT");
    assert!(told.contains("it redirects from https to plain http at http://localhost:PORT"), "{told}");
    assert!(https.requests() >= 2);
    assert_eq!(bench.server.served().len(), 0, "the other server saw neither token nor request");
}
