//! The LAN server towards those who should not read from it, and towards those who only cost it something.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use larder::digest::{CHUNK_LEN, ChunkHasher, Sha256};
use larder::facts::Facts;
use larder::serve::{Guests, Index, Limits, Served, Tls, Token};
use reqwest::{Certificate, Client, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

#[path = "support/mirror.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod mirror;
#[path = "support/tool.rs"]
mod tool;

use mirror::{COMMIT, Mirror, put, served};

const CONTENT: &[u8] = b"weights that not everybody may read";
/// Every face of the server, each by one question.
const FACES: [&str; 10] = [
    "/",
    "/lock",
    "/metrics",
    "/files/tiny/model.safetensors",
    "/api/models/acme/tiny",
    "/acme/tiny/resolve/main/model.safetensors",
    "/v2/",
    "/api/models/acme/tiny/xet-read-token/main",
    "/api/xet/v2/reconstructions/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "/nothing/at/all",
];

fn tiny(folder: &Path) -> Served {
    served("tiny", "hf:acme/tiny", Some(COMMIT), vec![put(folder, "model.safetensors", CONTENT, true)])
}

fn index(folder: &Path) -> Index {
    Index { artifacts: vec![tiny(folder)], lock: Some("{}".to_owned()), facts: None, within: vec!["/".into()] }
}

fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

async fn status(mirror: &Mirror, path: &str, token: Option<&str>) -> StatusCode {
    let request = client().get(mirror.at(path));
    token.into_iter().fold(request, |request, token| request.bearer_auth(token)).send().await.unwrap().status()
}

fn address(mirror: &Mirror) -> SocketAddr {
    mirror.url.split("//").nth(1).unwrap().parse().unwrap()
}

/// Sends these bytes and returns everything that comes until the server closes.
async fn say(mirror: &Mirror, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address(mirror)).await.unwrap();
    // The server may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn nothing_is_told_to_who_does_not_show_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let guests = Guests { networks: Vec::new(), token: Token::new("s3cret") };
    let mirror = Mirror::open_for(index(dir.path()), guests, |server| server).await;
    for path in FACES {
        let refused = client().get(mirror.at(path)).send().await.unwrap();
        assert_eq!(
            (refused.status().as_u16(), &refused.headers()["www-authenticate"]),
            (401, &"Bearer".parse().unwrap())
        );
        let told = refused.text().await.unwrap();
        assert!(!told.contains("tiny") && !told.contains("s3cret"), "{path}: {told}");
        assert_eq!(status(&mirror, path, Some("s3cre")).await, 401, "{path}");
        assert_ne!(status(&mirror, path, Some("s3cret")).await, 401, "{path}");
    }
    assert_eq!(status(&mirror, FACES[3], Some("s3cret")).await, 200);
    assert_eq!(mirror.traffic.requests(), 3 * FACES.len() as u64 + 1, "who is refused is counted too");
}

#[tokio::test]
async fn other_networks_are_refused_unless_they_show_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = || vec!["192.0.2.0/24".parse().unwrap()];
    let closed = Guests { networks: elsewhere(), token: None };
    let mirror = Mirror::open_for(index(dir.path()), closed, |server| server).await;
    assert_eq!(status(&mirror, FACES[3], Some("anything")).await, 403);
    let half = Guests { networks: elsewhere(), token: Token::new("s3cret") };
    let mirror = Mirror::open_for(index(dir.path()), half, |server| server).await;
    assert_eq!(
        (status(&mirror, FACES[3], None).await, status(&mirror, FACES[3], Some("s3cret")).await),
        (StatusCode::UNAUTHORIZED, StatusCode::OK)
    );
    let open = Guests { networks: vec!["127.0.0.0/8".parse().unwrap()], token: Token::new("s3cret") };
    let mirror = Mirror::open_for(index(dir.path()), open, |server| server).await;
    assert_eq!(status(&mirror, FACES[3], None).await, 200);
}

#[tokio::test]
async fn a_made_certificate_stays_the_same_and_is_trusted_by_who_pins_it() {
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tls = Tls::of_own(state.path(), vec!["localhost".to_owned()]).unwrap();
    assert_eq!(Tls::of_own(state.path(), vec!["other".to_owned()]).unwrap().fingerprint(), tls.fingerprint());
    let key = std::fs::metadata(state.path().join("serve-key.pem")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
    let mirror = Mirror::open_for(index(dir.path()), Guests::default(), |server| server.with_tls(tls)).await;
    let url = format!("https://localhost:{}/files/tiny/model.safetensors", address(&mirror).port());
    let stranger = client().get(&url).send().await.unwrap_err();
    assert!(stranger.is_connect(), "{stranger:?}");
    let pem = std::fs::read(state.path().join("serve-certificate.pem")).unwrap();
    let trusting =
        Client::builder().no_proxy().tls_certs_merge([Certificate::from_pem(&pem).unwrap()]).build().unwrap();
    assert_eq!(trusting.get(&url).send().await.unwrap().bytes().await.unwrap(), CONTENT);
    assert!(!say(&mirror, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("tiny"), "plain http is not answered");
}

#[test]
fn a_certificate_without_its_key_is_explained() {
    let state = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    for folder in [&state, &other] {
        Tls::of_own(folder.path(), vec!["localhost".to_owned()]).unwrap();
    }
    let certificate = state.path().join("serve-certificate.pem");
    let pair = Tls::read(&certificate, &other.path().join("serve-key.pem")).unwrap_err();
    assert!(pair.to_string().ends_with("cannot be used together"), "{pair}");
    let no_key = Tls::read(&certificate, &certificate).unwrap_err();
    assert!(no_key.to_string().ends_with("has no usable private key"), "{no_key}");
    let absent = Tls::read(&state.path().join("absent"), &certificate).unwrap_err();
    assert!(absent.to_string().ends_with("absent cannot be used for TLS"), "{absent}");
}

#[tokio::test]
async fn heads_that_never_end_and_floods_of_headers_cost_one_connection() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { head_patience: Duration::from_millis(200), ..Limits::default() };
    let mirror = Mirror::open_for(index(dir.path()), Guests::default(), |server| server.with_limits(limits)).await;
    // Ends only because the server closes.
    assert!(!say(&mirror, b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ").await.contains("200 OK"));
    assert_eq!(say(&mirror, b"").await, "");
    let large = format!("GET / HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "a".repeat(1 << 20));
    assert!(say(&mirror, large.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x-one: 1\r\n".repeat(5000));
    assert!(say(&mirror, many.as_bytes()).await.starts_with("HTTP/1.1 431"));
    assert_eq!(status(&mirror, FACES[3], None).await, 200);
}

/// Two ways to say where a request ends: a proxy in front and a server behind may disagree about it.
#[tokio::test]
async fn smuggled_requests_are_not_answered() {
    let dir = tempfile::tempdir().unwrap();
    // One of them may also be a request whose body is still to come, which the server waits for.
    let patience = Duration::from_millis(200);
    let limits = Limits { head_patience: patience, body_patience: patience, ..Limits::default() };
    let mirror = Mirror::open_for(index(dir.path()), Guests::default(), |server| server.with_limits(limits)).await;
    let hidden = "GET /files/tiny/model.safetensors HTTP/1.1\r\nhost: x\r\n\r\n";
    for ambiguous in [
        // The classic: whoever goes by the length sees one request, whoever goes by the chunks sees two.
        format!(
            "POST /api/models/acme/tiny/paths-info/main HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\
             transfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
            hidden.len() + 5
        ),
        format!(
            "POST /api/models/acme/tiny/paths-info/main HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\
             content-length: 4\r\n\r\n5c\r\n{hidden}\r\n0\r\n\r\n"
        ),
        format!(
            "POST /api/models/acme/tiny/paths-info/main HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        format!("GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n{hidden}"),
        format!(
            "GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: identity\r\ntransfer-encoding: chunked, x\r\n\r\n{hidden}"
        ),
        format!("GET / HTTP/1.1\r\nhost : x\r\n\r\n{hidden}"),
        // A line that goes on in the next one: some join them, some see two headers, some end the head there.
        format!("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n {}\r\n\r\n{hidden}", hidden.len()),
        format!("POST / HTTP/1.1\r\nhost: x\r\nx-one: a\r\n\tcontent-length: 0\r\n\r\n{hidden}"),
        // Chunks are nothing that HTTP/1.0 has.
        format!("POST / HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        // Numbers that are none.
        format!("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0x0\r\n\r\n{hidden}"),
        format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +0\r\n\r\n{hidden}"),
    ] {
        let answer = say(&mirror, ambiguous.as_bytes()).await;
        assert!(!answer.contains("weights that"), "{ambiguous}: {answer}");
    }
}

/// A body that comes byte by byte, or never, costs one connection for as long as the server is patient.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_trickle_are_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { body_patience: Duration::from_millis(200), ..Limits::default() };
    let mirror = Mirror::open_for(index(dir.path()), Guests::default(), |server| server.with_limits(limits)).await;
    let head = "POST /api/models/acme/tiny/paths-info/main HTTP/1.1\r\nhost: x\r\n\
                content-type: application/x-www-form-urlencoded\r\n";
    for length in ["content-length: 1000000\r\n\r\n", "transfer-encoding: chunked\r\n\r\n"] {
        let mut stream = TcpStream::connect(address(&mirror)).await.unwrap();
        stream.write_all(format!("{head}{length}").as_bytes()).await.unwrap();
        let (mut taking, mut giving) = stream.into_split();
        // One byte after the other, for as long as somebody takes them.
        let chunked = length.starts_with("transfer");
        let trickle = tokio::spawn(async move {
            loop {
                tokio::task::yield_now().await;
                if giving.write_all(if chunked { b"1\r\na\r\n" } else { b"a" }).await.is_err() {
                    break;
                }
            }
        });
        let mut answer = Vec::new();
        // Ends only because the server closes.
        let _ = taking.read_to_end(&mut answer).await;
        trickle.abort();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("did not come in time"), "{answer}");
    }
    let large = format!("{head}connection: close\r\ncontent-length: 2000000\r\n\r\n{}", "a".repeat(2_000_000));
    assert!(say(&mirror, large.as_bytes()).await.starts_with("HTTP/1.1 400"));
    assert_eq!(status(&mirror, FACES[3], None).await, 200);
}

/// The kernel counts how long a client takes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn who_takes_nothing_of_what_is_sent_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let large = put(dir.path(), "large.bin", &vec![7; 64 << 20], true);
    let served = served("large", "hf:acme/large", Some(COMMIT), vec![large]);
    let limits = Limits { send_patience: Duration::from_millis(200), ..Limits::default() };
    let index = Index::of(vec![served], ["/"]);
    let mirror = Mirror::open_for(index, Guests::default(), |server| server.with_limits(limits)).await;
    let mut stream = TcpStream::connect(address(&mirror)).await.unwrap();
    stream.write_all(b"GET /files/large/large.bin HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    // Nothing is read: the server can tell only by what is not taken.
    let gone = async {
        loop {
            let metrics = client().get(mirror.at("/metrics")).send().await.unwrap().text().await.unwrap();
            if mirror.traffic.bytes() > 0 && metrics.contains("larder_serve_answers_under_way 0\n") {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the answer is given up");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 64 << 20, "{} bytes came in spite of it", rest.len());
}

async fn connect_from(source: &str, mirror: &Mirror) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    socket.connect(address(mirror)).await.unwrap()
}

/// With the limits that every server has: a thousand from nine addresses are all let in, and others still are.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_leave_room_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let mirror =
        Mirror::open_for(index(dir.path()), Guests::default(), |server| server.with_limits(Limits::default())).await;
    let mut idle = Vec::new();
    for number in 0..1000 {
        let mut stream = connect_from(&format!("127.0.0.{}", 10 + number % 9), &mirror).await;
        // Half a request each: all are in, and wait.
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n").await.unwrap();
        idle.push(stream);
    }
    let mut other = connect_from("127.0.0.2", &mirror).await;
    let asked = b"GET /files/tiny/model.safetensors HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    other.write_all(asked).await.unwrap();
    let mut answer = Vec::new();
    other.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(CONTENT));
    for stream in &mut idle {
        stream.write_all(b"connection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"), "none of those that wait was forgotten");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_of_one_address_do_not_keep_others_out() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { connections_per_client: 100, ..Limits::default() };
    let mirror = Mirror::open_for(index(dir.path()), Guests::default(), |server| server.with_limits(limits)).await;
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(TcpStream::connect(address(&mirror)).await.unwrap());
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(address(&mirror)).await.unwrap();
    other
        .write_all(b"GET /files/tiny/model.safetensors HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    other.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(CONTENT));
    // Those above the limit were closed at once, and the others wait to be asked.
    let last = idle.last_mut().unwrap();
    assert_eq!(last.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn chunk_digests_are_told_for_what_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let content = vec![3; CHUNK_LEN as usize + 1];
    let artifact = served("big", "hf:acme/big", Some(COMMIT), vec![put(dir.path(), "big.bin", &content, true)]);
    let facts = Arc::new(Facts::in_memory().unwrap());
    let mut hasher = ChunkHasher::default();
    hasher.update(&content);
    let (digest, chunks) = (Sha256::of(&content), hasher.finish());
    facts.record_chunks(&digest, &chunks).unwrap();
    facts.record_chunks(&Sha256::of(b"elsewhere"), &chunks).unwrap();
    let index =
        Index { artifacts: vec![artifact, tiny(dir.path())], lock: None, facts: Some(facts), within: vec!["/".into()] };
    let mirror = Mirror::open_for(index, Guests::default(), |server| server).await;
    let path = |digest: &dyn std::fmt::Display| format!("/chunks/sha256/{digest}");
    let text = client().get(mirror.at(&path(&digest))).send().await.unwrap().text().await.unwrap();
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected: Vec<String> = chunks.digests().iter().map(ToString::to_string).collect();
    assert_eq!(told, serde_json::json!({ "size": content.len(), "chunk-len": CHUNK_LEN, "blake3": expected }));
    for unknown in [path(&Sha256::of(CONTENT)), path(&Sha256::of(b"elsewhere")), path(&"..")] {
        assert_eq!(status(&mirror, &unknown, None).await, 404, "{unknown}");
    }
}

/// Prometheus' own program must find nothing to say about it.
fn check_with_promtool(metrics: &str) {
    let Some(promtool) = tool::tool("promtool") else { return };
    let mut check = Command::new(promtool);
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().unwrap();
    check.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let said = check.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&said.stderr) + String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && text.is_empty(), "{text}{metrics}");
}

#[tokio::test]
async fn traffic_is_counted_for_prometheus() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = Mirror::open(vec![tiny(dir.path())], None).await;
    assert_eq!(status(&mirror, FACES[3], None).await, 200);
    assert_eq!(status(&mirror, "/nothing/at/all", None).await, 404);
    assert_eq!(status(&mirror, "/v2/", None).await, 200);
    let metrics = client().get(mirror.at("/metrics")).send().await.unwrap().text().await.unwrap();
    let open = metrics.lines().find_map(|line| line.strip_prefix("larder_serve_connections ")).unwrap();
    assert!((1..=4).contains(&open.parse::<u32>().unwrap()), "the one that asks is open: {metrics}");
    check_with_promtool(&metrics);
    for line in [
        "larder_serve_requests_total{face=\"larder\",status=\"200\"} 1".to_owned(),
        "larder_serve_requests_total{face=\"hub\",status=\"404\"} 1".to_owned(),
        "larder_serve_requests_total{face=\"registry\",status=\"200\"} 1".to_owned(),
        "larder_serve_answers_under_way 0".to_owned(),
        "larder_serve_connections_refused_total 0".to_owned(),
        format!("larder_serve_sent_bytes_total {}", CONTENT.len()),
    ] {
        assert!(metrics.lines().any(|told| told == line), "{line} in {metrics}");
    }
}
