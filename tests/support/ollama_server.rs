//! A small server that keeps models as Ollama does: pulls them from a registry into a folder of its own, each blob where
//! the registry sends it for, in several ranges at once, compares what it fetched, and never looks at what it has. Shares
//! no code with larder. No package client installs the real one
//! (docs/decisions/0003-ollama-rs.md), so the requests and answers here are what its documentation and source say.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::response::Response;
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::fake_server::{FakeServer, Seen, answer};

/// Names, and the digests of their manifests.
type Models = Arc<Mutex<BTreeMap<String, String>>>;

/// A running server; ends when dropped.
pub(crate) struct OllamaServer {
    server: FakeServer,
    models: Models,
    folder: tempfile::TempDir,
}

impl OllamaServer {
    /// A server without models.
    pub(crate) async fn start() -> Self {
        let (models, folder) = (Models::default(), tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let (own, place) = (Arc::clone(&models), folder.path().to_owned());
        let server = FakeServer::start(move |seen| respond(seen, &own, &place)).await;
        Self { server, models, folder }
    }

    /// Ends it; its folder stays until the result is dropped.
    pub(crate) fn stop(self) -> tempfile::TempDir {
        self.folder
    }

    /// Where it keeps its models.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.server.host)
    }

    /// All requests so far: method and path.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.server.lines()
    }

    /// What it would list.
    pub(crate) fn models(&self) -> BTreeMap<String, String> {
        self.models.lock().unwrap().clone()
    }

    /// Lets it have a model that nobody pulled.
    pub(crate) fn pretend(&self, name: &str, digest: &str) {
        self.models.lock().unwrap().insert(name.to_owned(), digest.to_owned());
    }
}

fn respond(seen: &Seen, models: &Models, folder: &Path) -> Response {
    let body: Value = serde_json::from_str(&seen.body).unwrap_or_default();
    let field = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let mut models = models.lock().unwrap();
    match seen.line.as_str() {
        "GET /api/tags" => {
            let tag = |(name, digest): (&String, &String)| json!({"name": name, "model": name, "modified_at": "", "size": 42, "digest": digest});
            answer(200, &[], json!({"models": models.iter().map(tag).collect::<Vec<_>>()}).to_string())
        }
        // The registry may live in the same runtime.
        "POST /api/pull" => match tokio::task::block_in_place(|| pull(&field("name"), folder)) {
            Ok(manifest) => {
                models.insert(field("name"), sha256(&manifest));
                answer(200, &[], "{\"status\":\"pulling manifest\"}\n{\"status\":\"success\"}\n")
            }
            Err(error) => answer(200, &[], format!("{}\n", json!({ "error": error }))),
        },
        "POST /api/copy" => match models.get(&field("source")).cloned() {
            Some(digest) => {
                let manifest = fs_err::read(place(&field("source"), folder)).unwrap();
                keep(&place(&field("destination"), folder), &manifest);
                models.insert(field("destination"), digest);
                answer(200, &[], "")
            }
            None => answer(404, &[], json!({"error": "not found"}).to_string()),
        },
        "DELETE /api/delete" => match models.remove(&field("name")) {
            Some(_) => {
                #[expect(clippy::disallowed_methods, reason = "the server's own folder")]
                std::fs::remove_file(place(&field("name"), folder)).unwrap();
                answer(200, &[], "")
            }
            None => answer(404, &[], json!({"error": "not found"}).to_string()),
        },
        _ => answer(404, &[], "404 page not found"),
    }
}

/// Ranges of one blob at the same time.
const RANGES: u64 = 4;

/// Fetches a model named `host:port/namespace/model:tag`, and returns its manifest.
fn pull(name: &str, folder: &Path) -> Result<Vec<u8>, String> {
    let (host, rest) = name.split_once('/').unwrap();
    let (repository, tag) = rest.rsplit_once(':').unwrap();
    let manifest = ask("GET", host, &format!("/v2/{repository}/manifests/{tag}"), "")?.body;
    let described: Value = serde_json::from_slice(&manifest).unwrap();
    for layer in described["layers"].as_array().unwrap().iter().chain([&described["config"]]) {
        let digest = layer["digest"].as_str().unwrap();
        let place = folder.join("blobs").join(digest.replace(':', "-"));
        if place.exists() {
            continue;
        }
        let blob = pull_blob(host, &format!("/v2/{repository}/blobs/{digest}"))?;
        if format!("sha256:{}", sha256(&blob)) != digest {
            return Err(format!("digest mismatch, file must be downloaded again: want {digest}"));
        }
        keep(&place, &blob);
    }
    keep(&place(name, folder), &manifest);
    Ok(manifest)
}

fn pull_blob(host: &str, path: &str) -> Result<Vec<u8>, String> {
    let length = ask("HEAD", host, path, "")?.header("content-length").ok_or("no length")?;
    let length: u64 = length.parse().map_err(|_| length)?;
    let whole = ask("GET", host, path, "")?;
    let Some(place) = whole.header("location").filter(|place| place.starts_with("http://")) else {
        return Ok(whole.body);
    };
    let (host, path) = place["http://".len()..].split_once('/').unwrap();
    let part = length.div_ceil(RANGES).max(1);
    let ranges = (0..length.div_ceil(part)).map(|n| n * part..((n + 1) * part).min(length));
    std::thread::scope(|scope| {
        let parts: Vec<_> = ranges
            .map(|range| {
                scope.spawn(move || {
                    let wanted = format!("Range: bytes={}-{}\r\n", range.start, range.end - 1);
                    let body = ask("GET", host, &format!("/{path}"), &wanted)?.body;
                    let is_whole = body.len() as u64 == range.end - range.start;
                    if is_whole { Ok(body) } else { Err("max retries exceeded: unexpected EOF".to_owned()) }
                })
            })
            .collect();
        parts
            .into_iter()
            .map(|part| part.join().unwrap())
            .collect::<Result<Vec<_>, String>>()
            .map(|parts| parts.concat())
    })
}

/// Where the manifest of a name lies.
fn place(name: &str, folder: &Path) -> PathBuf {
    let (model, tag) = name.rsplit_once(':').unwrap();
    let whole = match model.matches('/').count() {
        0 => format!("registry.ollama.ai/library/{model}"),
        1 => format!("registry.ollama.ai/{model}"),
        _ => model.to_owned(),
    };
    folder.join("manifests").join(whole).join(tag)
}

#[expect(clippy::disallowed_methods, reason = "the server's own folder")]
fn keep(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn sha256(content: &[u8]) -> String {
    sha2::Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Answer {
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<String> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned()).next()
    }
}

fn ask(method: &str, host: &str, path: &str, more: &str) -> Result<Answer, String> {
    let mut connection = TcpStream::connect(host).map_err(|error| format!("dial tcp {host}: {error}"))?;
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let request = format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\nAccept: {kind}\r\n{more}\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // Who breaks off is noticed by the length.
    let _ = connection.read_to_end(&mut answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or("EOF")?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8_lossy(&answer).into_owned();
    let is_welcome = ["200", "206", "307"].iter().any(|status| head.starts_with(&format!("HTTP/1.0 {status}")));
    if is_welcome { Ok(Answer { head, body }) } else { Err(head.lines().next().unwrap_or("EOF").to_owned()) }
}
