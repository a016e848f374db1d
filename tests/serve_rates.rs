//! How `larder serve` keeps to its rates, comes from systemd's socket, and what it never writes down.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder::digest::Sha256;
use larder::serve::{Guests, Index, Rates, Server, Terms, Traffic, router};
use larder::size::Bytes;
use larder::sources::{PeerConfig, SourceError, SourceSettings, Sources};

#[path = "support/mirror.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod mirror;
#[path = "support/program.rs"]
mod program;
#[path = "support/tool.rs"]
mod tool;

use mirror::{COMMIT, put, served};
use program::{INVENTORY, Lab};

const MIB: usize = 1 << 20;
const CONTENT: &[u8] = b"weights that not everybody may read";

async fn rated(rates: Rates) -> (String, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = put(dir.path(), "model.bin", &vec![7; 2 * MIB], true);
    let index = Index::of(vec![served("tiny", "hf:acme/tiny", Some(COMMIT), vec![file])], ["/"]);
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}/files/tiny/model.bin", server.local_addr());
    let terms = Terms { rates, ..Guests::default().into() };
    tokio::spawn(server.run(router(index, terms, Arc::new(Traffic::default())), std::future::pending()));
    (url, dir)
}

/// How long it takes to get the file over so many connections at once.
async fn time(url: &str, connections: usize, from: &'static str) -> Duration {
    let begin = Instant::now();
    let get = || async {
        let client = reqwest::Client::builder().no_proxy().local_address(Some(from.parse().unwrap())).build().unwrap();
        assert_eq!(client.get(url).send().await.unwrap().bytes().await.unwrap().len(), 2 * MIB);
    };
    futures_util::future::join_all((0..connections).map(|_| get())).await;
    begin.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_its_rate_over_all_its_connections_and_others_get_theirs() {
    let rate = Some(Bytes(8 * MIB as u64));
    let (url, _dir) = rated(Rates { per_client: rate, total: None }).await;
    let (one, other) = tokio::join!(time(&url, 2, "127.0.0.1"), time(&url, 2, "127.0.0.2"));
    for taken in [one, other] {
        assert!(taken > Duration::from_millis(430), "4 MiB at 8 MiB/s in {taken:?}");
    }
    let (url, _dir) = rated(Rates { per_client: None, total: rate }).await;
    let begin = Instant::now();
    tokio::join!(time(&url, 1, "127.0.0.1"), time(&url, 1, "127.0.0.2"));
    assert!(begin.elapsed() > Duration::from_millis(430), "4 MiB at 8 MiB/s in {:?}", begin.elapsed());
}

/// A program that is ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn tiny() -> Lab {
    let manifest = format!(
        "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"local\"\n\
         [[artifact.file]]\npath = \"tiny.bin\"\nsize = {}\nsha256 = \"{}\"\n",
        CONTENT.len(),
        Sha256::of(CONTENT)
    );
    let lab = Lab::new(INVENTORY, &manifest);
    lab.write("home/plain/tiny.bin", CONTENT);
    lab
}

fn ask(port: u16, head: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(format!("GET {head}\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// As systemd does it: the socket listens first, and the first client starts the program.
#[test]
fn the_first_client_starts_the_server_by_systemds_socket() {
    let Some(activate) = tool::tool("systemd-socket-activate") else { return };
    let lab = tiny();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(activate);
    command.arg(format!("--listen=127.0.0.1:{port}"));
    for name in ["HOME", "LARDER_STATE"] {
        let inner = lab.command(&[]);
        let value = inner.get_envs().find(|(key, _)| *key == name).unwrap().1.unwrap().to_owned();
        command.arg(format!("--setenv={name}={}", value.to_str().unwrap()));
    }
    command.arg(env!("CARGO_BIN_EXE_larder")).arg("--inventory").arg(lab.path("inventory.toml")).arg("serve");
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let _running = Running(child);
    assert!(said.any(|line| line.unwrap().contains("Listening on")));
    std::thread::spawn(move || said.for_each(drop));
    assert!(ask(port, "/files/tiny/tiny.bin HTTP/1.1").ends_with("not everybody may read"));
}

/// The units that larder writes: systemd finds nothing wrong with them, and they expose little.
#[test]
fn the_units_are_right_and_safe_in_the_eyes_of_systemd() {
    let Some(analyze) = tool::tool("systemd-analyze") else { return };
    let lab = tiny();
    lab.write("token of the lab", b"s3cret-of-the-lab");
    let shown = lab.run(&["serve", "--units"]);
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert!(
        shown.out.contains("ListenStream=127.0.0.1:8014\n") && !shown.out.contains("LoadCredential"),
        "{}",
        shown.out
    );
    let everything = [
        "serve",
        "--units",
        "units",
        "--as",
        "daemon",
        "--address",
        "0.0.0.0:8014",
        "--allow",
        "192.168.7.0/24",
        "--token-file",
        "token of the lab",
        "--tls",
        "--gated",
        "--fetch-missing",
        "--max-rate",
        "200MB/s",
    ];
    let written = lab.run(&everything);
    assert_eq!(written.code, 0, "{}", written.err);
    let service = fs_err::read_to_string(lab.path("units/larder-serve.service")).unwrap();
    for words in [
        "User=daemon\n",
        "LoadCredential=\"token-file:",
        "--token-file %d/token-file\n",
        "serve --allow 192.168.7.0/24 --tls --gated --fetch-missing --max-rate 200MB/s",
        "ExecReload=/bin/kill -HUP $MAINPID\n",
    ] {
        assert!(service.contains(words), "{words}: {service}");
    }
    assert!(!service.contains("s3cret"), "{service}");
    let ran = |arguments: &[&str]| {
        let mut command = Command::new(&analyze);
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", lab.path("home"));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), said)
    };
    let unit = |name: &str| lab.path("units").join(name).to_str().unwrap().to_owned();
    for name in ["larder-serve.socket", "larder-serve.service"] {
        let (is_right, said) = ran(&["verify", "--system", "--man=no", &unit(name)]);
        // An unknown key is only a warning, with success.
        assert!(is_right && !said.contains("larder"), "{said}{service}");
    }
    let (is_safe, said) =
        ran(&["security", "--offline=true", "--no-pager", "--threshold=25", &unit("larder-serve.service")]);
    assert!(is_safe, "{said}");
    // Who could be reached by everybody is asked first, as without the units; and what others wrote stays.
    let open = lab.run(&["serve", "--units", "--address", "0.0.0.0:8014"]);
    assert!(open.code == 2 && open.err.contains("Everybody who can reach"), "{}", open.err);
    lab.write("units/larder-serve.socket", b"[Socket]\n");
    let foreign = lab.run(&everything);
    assert!(foreign.code == 2 && foreign.err.contains("was not written by larder"), "{}", foreign.err);
}

/// What the unit's command does under systemd: the socket is there, and the token lies where it is put for the service.
#[test]
fn the_units_command_serves_from_the_socket_with_its_credential() {
    let Some(activate) = tool::tool("systemd-socket-activate") else { return };
    let lab = tiny();
    lab.write("token", b"s3cret-of-the-lab");
    lab.write("credentials/token-file", b"s3cret-of-the-lab");
    assert_eq!(lab.run(&["serve", "--units", "units", "--token-file", "token"]).code, 0);
    let service = fs_err::read_to_string(lab.path("units/larder-serve.service")).unwrap();
    let command = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let command = command.replace("%d", lab.path("credentials").to_str().unwrap());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut started = Command::new(activate);
    started.arg(format!("--listen=127.0.0.1:{port}"));
    for name in ["HOME", "LARDER_STATE"] {
        let inner = lab.command(&[]);
        let value = inner.get_envs().find(|(key, _)| *key == name).unwrap().1.unwrap().to_owned();
        started.arg(format!("--setenv={name}={}", value.to_str().unwrap()));
    }
    started.args(command.split_whitespace());
    let mut child = started.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let _running = Running(child);
    assert!(said.any(|line| line.unwrap().contains("Listening on")));
    std::thread::spawn(move || said.for_each(drop));
    assert!(ask(port, "/files/tiny/tiny.bin HTTP/1.1").contains("401"));
    let shown = ask(port, "/files/tiny/tiny.bin HTTP/1.1\r\nauthorization: Bearer s3cret-of-the-lab");
    assert!(shown.ends_with("not everybody may read"), "{shown}");
}

/// Tokens come in headers, in addresses by mistake, and in the file that the server reads: none of them is written down.
#[test]
fn no_token_is_ever_in_the_log() {
    let lab = tiny();
    lab.write("token", b"s3cret-of-the-lab");
    let mut command = lab.command(&["-vv", "serve", "--address", "127.0.0.1:0", "--token-file", "token"]);
    command.env("LARDER_LOG", "trace");
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut log = String::new();
    let port: u16 = loop {
        let line = lines.next().unwrap().unwrap();
        log.push_str(&line);
        if let Some((_, address)) = line.split_once(" at http://") {
            break address.trim().rsplit(':').next().unwrap().parse().unwrap();
        }
    };
    let bearer = |token: &str| format!("/files/tiny/tiny.bin HTTP/1.1\r\nauthorization: Bearer {token}");
    assert!(ask(port, &bearer("s3cret-of-the-lab")).contains("200 OK"));
    assert!(ask(port, &bearer("s3cret-guessed")).contains("401"));
    assert!(ask(port, "/files/tiny/tiny.bin?token=s3cret-in-address HTTP/1.1").contains("401"));
    assert!(ask(port, "/lock HTTP/1.1\r\ncookie: s3cret-cookie\r\nx-api-key: s3cret-key").contains("401"));
    drop(Running(child));
    lines.map_while(Result::ok).for_each(|line| log.push_str(&line));
    assert!(log.contains("/files/tiny/tiny.bin") && log.contains("401"), "{log}");
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "everything is told, of what others say too: {log}");
    assert!(!log.contains("s3cret"), "{log}");
}

/// One address may not hold too many connections.
fn connect_from(address: &str, to: &str) -> TcpStream {
    let connect = async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
        socket.connect(to.parse().unwrap()).await.unwrap().into_std().unwrap()
    };
    let stream = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(connect);
    stream.set_nonblocking(false).unwrap();
    stream
}

/// What is read ahead for each would be three times 256 KiB: those who come when there are many already get less.
#[test]
fn two_hundred_clients_at_once_fit_into_the_memory() {
    const CLIENTS: usize = 200;
    const PIECE: usize = 64 << 10;
    let content = vec![3; 4 * MIB];
    let manifest = format!(
        "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"local\"\n\
         [[artifact.file]]\npath = \"tiny.bin\"\nsize = {}\nsha256 = \"{}\"\n",
        content.len(),
        Sha256::of(&content)
    );
    let lab = Lab::new(INVENTORY, &manifest);
    lab.write("home/plain/tiny.bin", &content);
    let mut command = lab.command(&["serve", "--address", "127.0.0.1:0"]);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines.find_map(|line| Some(line.unwrap().split_once(" at http://")?.1.trim().to_owned())).unwrap();
    let running = Running(child);
    std::thread::spawn(move || lines.for_each(drop));
    let mut clients: Vec<(TcpStream, usize)> = (0..CLIENTS)
        .map(|number| {
            let mut stream = connect_from(if number < CLIENTS / 2 { "127.0.0.1" } else { "127.0.0.2" }, &address);
            stream.write_all(b"GET /files/tiny/tiny.bin HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
            (stream, 0)
        })
        .collect();
    // A piece from each in turn, so that all are under way until the end.
    let mut piece = vec![0; PIECE];
    while !clients.is_empty() {
        clients.retain_mut(|(stream, got)| {
            let more = stream.read(&mut piece).unwrap();
            *got += more;
            assert!(more > 0 || *got > content.len(), "{got} bytes, head included");
            more > 0
        });
    }
    let status = fs_err::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).unwrap();
    let peak: usize = peak.parse().unwrap();
    assert!(peak < 128 << 10, "{} MiB", peak >> 10);
}

fn peer(url: &str) -> Sources {
    let peer = PeerConfig {
        name: "evil".to_owned(),
        url: url.parse().unwrap(),
        token: None,
        certificate: None,
        sockets: Vec::new(),
    };
    Sources::new(&SourceSettings { peers: vec![peer], ..SourceSettings::default() }).unwrap()
}

/// A list that never ends costs no more memory than the longest honest one, and a wrong one is an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_answers_nonsense_is_not_believed() {
    for (body, endless) in
        [("{\"sha256\": [", true), ("{\"sha256\": [\"00\"], \"git-sha1\": []}", false), ("[]", false)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}").as_bytes());
                let piece = format!("\"{}\",", "0".repeat(64)).repeat(8192);
                while endless && stream.write_all(piece.as_bytes()).is_ok() {}
            }
        });
        let sources = peer(&url);
        let error = sources.peers().holdings("evil").await.unwrap_err();
        assert!(matches!(error, SourceError::Protocol { .. }), "{body}: {error}");
        let chunks = sources.peers().chunks("evil", &Sha256::of(CONTENT)).await.unwrap_err();
        assert!(matches!(chunks, SourceError::Protocol { .. }), "{body}: {chunks}");
    }
}
