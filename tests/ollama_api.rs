//! The route through a running Ollama server, against a small server that keeps models as Ollama does.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::response::Response;
use larder::artifact::OllamaName;
use larder::digest::Sha256;
use larder::ollama_api::{OllamaApi, OllamaApiError, Pull, PullProgress};
use serde_json::{Value, json};

#[path = "support/fake_server.rs"]
mod fake_server;

use fake_server::{FakeServer, Seen, answer};

/// Names and what they stand for, shared between the test and its server.
type Models = Arc<Mutex<BTreeMap<String, Sha256>>>;

const MIRROR: &str = "10.0.0.7:5000/library/tiny:1b";

fn named(text: &str) -> OllamaName {
    text.parse().unwrap()
}

fn wanted() -> Sha256 {
    Sha256::of(b"the wanted manifest")
}

/// Pulls put `pulled` under the asked name and answer with `lines`.
async fn ollama(models: &Models, pulled: Sha256, lines: &'static str) -> (FakeServer, OllamaApi) {
    let models = Arc::clone(models);
    let server = FakeServer::start(move |seen| respond(seen, &models, pulled, lines)).await;
    let api = OllamaApi::new(format!("http://{}", server.host).parse().unwrap());
    (server, api)
}

fn respond(seen: &Seen, models: &Models, pulled: Sha256, lines: &'static str) -> Response {
    let body: Value = serde_json::from_str(&seen.body).unwrap_or_default();
    let field = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let mut models = models.lock().unwrap();
    let unknown = |name: String| answer(404, &[], json!({"error": format!("model '{name}' not found")}).to_string());
    match seen.line.as_str() {
        "GET /api/version" => answer(200, &[], r#"{"version":"0.33.0"}"#),
        "GET /api/tags" => {
            let tag = |(name, digest): (&String, &Sha256)| json!({"name": name, "model": name, "modified_at": "", "size": 42, "digest": digest.to_string()});
            answer(200, &[], json!({"models": models.iter().map(tag).collect::<Vec<_>>()}).to_string())
        }
        "POST /api/pull" => {
            models.insert(field("name"), pulled);
            answer(200, &[("content-type", "application/x-ndjson")], lines)
        }
        "POST /api/copy" => match models.get(&field("source")).copied() {
            Some(digest) => {
                models.insert(field("destination"), digest);
                answer(200, &[], "")
            }
            None => unknown(field("source")),
        },
        "DELETE /api/delete" => match models.remove(&field("name")) {
            Some(_) => answer(200, &[], ""),
            None => unknown(field("name")),
        },
        "POST /api/show" => {
            let modelfile = "# Modelfile\nFROM /srv/models/blobs/sha256-00\nTEMPLATE x\n";
            answer(200, &[], json!({"modelfile": modelfile, "capabilities": ["completion", "vision"]}).to_string())
        }
        _ => answer(404, &[], "404 page not found"),
    }
}

const GOOD: &str = concat!(
    "{\"status\":\"pulling manifest\"}\n",
    "{\"status\":\"pulling 0123\",\"digest\":\"sha256:0123\",\"total\":10,\"completed\":4}\n",
    "{\"status\":\"success\"}\n"
);

async fn pull(api: &OllamaApi) -> (Result<(), OllamaApiError>, Vec<PullProgress>) {
    let (mirror, name) = (named(MIRROR), named("tiny:1b"));
    let seen = Mutex::new(Vec::new());
    let pull = Pull { mirror: &mirror, name: &name, digest: wanted(), insecure: true };
    let result = api.pull_from(&pull, &|progress| seen.lock().unwrap().push(progress)).await;
    (result, seen.into_inner().unwrap())
}

fn names(models: &Models) -> Vec<String> {
    models.lock().unwrap().keys().cloned().collect()
}

#[tokio::test]
async fn a_model_comes_through_a_mirror_under_its_own_name() {
    let models = Models::default();
    let (server, api) = ollama(&models, wanted(), GOOD).await;
    let (result, progress) = pull(&api).await;
    result.unwrap();
    assert_eq!(names(&models), ["tiny:1b"], "the mirror's name is gone");
    assert_eq!(progress.len(), 3);
    assert_eq!((progress[1].total, progress[1].completed), (Some(10), Some(4)));
    assert_eq!(server.seen()[0].header("content-type"), "application/json");
    let asked: Value = serde_json::from_str(&server.seen()[0].body).unwrap();
    assert_eq!((&asked["name"], &asked["insecure"]), (&json!(MIRROR), &json!(true)));
    let lines = server.lines();
    assert_eq!(lines, ["POST /api/pull", "GET /api/tags", "POST /api/copy", "DELETE /api/delete", "GET /api/tags"]);
}

#[tokio::test]
async fn a_pull_that_does_not_end_in_success_is_a_failure() {
    type Expected = fn(&OllamaApiError) -> bool;
    let cases: [(&'static str, Expected); 5] = [
        ("{\"status\":\"pulling manifest\"}\n", |error| matches!(error, OllamaApiError::BrokeOff { .. })),
        ("", |error| matches!(error, OllamaApiError::BrokeOff { .. })),
        ("{\"status\":\"success\"}\n{\"status\":\"again\"}\n", |error| {
            matches!(error, OllamaApiError::BrokeOff { .. })
        }),
        (
            "{\"status\":\"pulling manifest\"}\n{\"error\":\"digest mismatch, file must be downloaded again\"}\n",
            |error| matches!(error, OllamaApiError::Refused { message, .. } if message.starts_with("digest mismatch")),
        ),
        ("<html>\n", |error| matches!(error, OllamaApiError::Refused { message, .. } if message.contains("no sense"))),
    ];
    for (lines, is_expected) in cases {
        let models = Models::default();
        models.lock().unwrap().insert("tiny:1b".to_owned(), Sha256::of(b"old"));
        let (_server, api) = ollama(&models, wanted(), lines).await;
        let error = pull(&api).await.0.unwrap_err();
        assert!(is_expected(&error), "{lines}: {error:?}");
        assert_eq!(models.lock().unwrap()["tiny:1b"], Sha256::of(b"old"), "the name keeps what it had");
    }
}

#[tokio::test]
async fn a_moved_tag_does_not_replace_the_model() {
    let models = Models::default();
    let old = Sha256::of(b"old");
    models.lock().unwrap().insert("tiny:1b".to_owned(), old);
    let other = Sha256::of(b"something else");
    let (_server, api) = ollama(&models, other, GOOD).await;
    let error = pull(&api).await.0.unwrap_err();
    let OllamaApiError::Different { name, wanted: asked, actual, .. } = &error else { panic!("{error:?}") };
    assert_eq!((name.as_str(), *asked, *actual), (MIRROR, wanted(), Some(other)));
    assert_eq!(models.lock().unwrap().clone(), BTreeMap::from([("tiny:1b".to_owned(), old)]), "and leaves no trace");
}

#[tokio::test]
async fn without_a_mirror_the_model_keeps_its_name() {
    let models = Models::default();
    let (server, api) = ollama(&models, wanted(), GOOD).await;
    let name = named("tiny:1b");
    let pull = Pull { mirror: &name, name: &name, digest: wanted(), insecure: false };
    api.pull_from(&pull, &|_| ()).await.unwrap();
    assert_eq!(server.lines(), ["POST /api/pull", "GET /api/tags"]);
    assert_eq!(names(&models), ["tiny:1b"]);
}

#[tokio::test]
async fn the_server_tells_its_version_its_models_and_its_store() {
    let models = Models::default();
    models.lock().unwrap().insert("tiny:1b".to_owned(), wanted());
    let (_server, api) = ollama(&models, wanted(), GOOD).await;
    assert_eq!(api.version().await.unwrap(), "0.33.0");
    let installed = api.installed().await.unwrap();
    assert_eq!((installed[0].name.as_str(), installed[0].digest, installed[0].size), ("tiny:1b", wanted(), 42));
    let shown = api.show(&named("tiny:1b")).await.unwrap();
    assert_eq!(shown.capabilities, ["completion", "vision"]);
    assert_eq!(shown.blob.unwrap().to_str(), Some("/srv/models/blobs/sha256-00"));
}

#[tokio::test]
async fn errors_say_who_and_what_and_in_whose_words() {
    let (_server, api) = ollama(&Models::default(), wanted(), GOOD).await;
    let error = api.delete(&named("gone:1b")).await.unwrap_err();
    assert!(error.to_string().ends_with("did not delete gone:1b: model 'gone:1b' not found"), "{error}");
    let error = api.copy(&named("gone:1b"), &named("b:1b")).await.unwrap_err();
    assert!(matches!(error, OllamaApiError::Refused { .. }), "{error:?}");
    let web = FakeServer::start(|_| answer(200, &[], "<html>")).await;
    let error = OllamaApi::new(format!("http://{}", web.host).parse().unwrap()).version().await.unwrap_err();
    assert!(matches!(error, OllamaApiError::NotOllama { path: "api/version", .. }), "{error:?}");
    let below = format!("http://{}/proxy", web.host);
    let error = OllamaApi::new(below.parse().unwrap()).installed().await.unwrap_err();
    assert!(matches!(error, OllamaApiError::NotOllama { .. }), "{error:?}");
    assert_eq!(web.lines()[1], "GET /proxy/api/tags");
}

#[tokio::test]
async fn a_server_that_is_not_there_cannot_be_reached() {
    // Bound and released: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let api = OllamaApi::new(format!("http://127.0.0.1:{port}").parse().unwrap());
    for error in [api.version().await.unwrap_err(), pull(&api).await.0.unwrap_err()] {
        assert!(matches!(error, OllamaApiError::Unreachable { .. }), "{error:?}");
        assert!(std::error::Error::source(&error).is_some());
    }
}
