//! What keeps larder from using `ollama-rs` everywhere: one test for each reason.
//!
//! A test that fails here after an update is good news: the code around that defect can go.
//! See `docs/decisions/0003-ollama-rs.md`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use futures_util::{StreamExt, stream};
use ollama_rs::Ollama;
use ollama_rs::error::OllamaError;
use ollama_rs::generation::completion::request::GenerationRequest;
use ollama_rs::models::create::CreateModelRequest;
use serde_json::Value;
use tokio::sync::oneshot;

#[path = "support/fake_server.rs"]
mod fake_server;

use fake_server::{FakeServer, answer};

fn client(server: &FakeServer) -> Ollama {
    Ollama::from_url(format!("http://{}/", server.host).parse().unwrap())
}

/// A server whose answer comes in two pieces, the second when the sender says so.
async fn in_two_pieces(first: &'static str, second: &'static str) -> (FakeServer, oneshot::Sender<()>) {
    let (send, go_on) = oneshot::channel();
    let go_on = Arc::new(Mutex::new(Some(go_on)));
    let server = FakeServer::start(move |_| {
        let go_on = go_on.lock().unwrap().take().unwrap();
        let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(first.as_bytes()))]);
        let second = stream::once(async move {
            let _ = go_on.await;
            Ok(Bytes::from_static(second.as_bytes()))
        });
        answer(200, &[], Body::from_stream(first.chain(second)))
    })
    .await;
    (server, send)
}

#[tokio::test]
async fn listing_drops_the_digest() {
    let tags = r#"{"models":[{"name":"a:1b","modified_at":"","size":1,"digest":"00ff","details":{"format":"gguf"}}]}"#;
    let server = FakeServer::start(move |_| answer(200, &[], tags)).await;
    let models = client(&server).list_local_models().await.unwrap();
    let model = serde_json::to_value(&models[0]).unwrap();
    assert_eq!(model["name"], "a:1b");
    assert!(model.get("digest").is_none() && model.get("details").is_none(), "{model}");
}

#[tokio::test]
async fn showing_drops_details_and_the_version_that_is_needed() {
    let shown = r#"{"modelfile":"","details":{"format":"gguf"},"requires":"0.30.0","projector_info":{}}"#;
    let server = FakeServer::start(move |_| answer(200, &[], shown)).await;
    let model = client(&server).show_model_info("a:1b".to_owned()).await.unwrap();
    let model = serde_json::to_value(&model).unwrap();
    assert!(["details", "requires", "projector_info"].iter().all(|key| model.get(key).is_none()), "{model}");
}

#[tokio::test]
async fn the_status_of_a_refusal_is_lost() {
    for status in [400, 404, 500, 503] {
        let server = FakeServer::start(move |_| answer(status, &[], r#"{"error":"no"}"#)).await;
        let error = client(&server).delete_model("a:1b".to_owned()).await.unwrap_err();
        let OllamaError::Other(text) = error else { panic!("{error:?}") };
        assert_eq!(text, r#"{"error":"no"}"#, "the same for {status}, and not even parsed");
    }
}

#[tokio::test]
async fn the_last_line_of_a_pull_is_lost_without_a_line_end() {
    let server = FakeServer::start(|_| answer(200, &[], "{\"status\":\"a\"}\n{\"status\":\"success\"}")).await;
    let statuses = client(&server).pull_model_stream("a:1b".to_owned(), false).await.unwrap();
    let statuses: Vec<String> = statuses.map(|status| status.unwrap().message).collect().await;
    assert_eq!(statuses, ["a"]);
}

#[tokio::test]
async fn a_pull_that_breaks_off_ends_like_one_that_succeeds() {
    let server = FakeServer::start(|_| answer(200, &[], "{\"status\":\"pulling manifest\"}\n")).await;
    let statuses = client(&server).pull_model_stream("a:1b".to_owned(), false).await.unwrap();
    let errors = statuses.filter(|status| std::future::ready(status.is_err())).count().await;
    assert_eq!(errors, 0);
}

#[tokio::test]
async fn lines_of_a_pull_that_arrive_in_pieces_are_joined() {
    let (server, go_on) = in_two_pieces("{\"status\":\"one\"}\n{\"stat", "us\":\"two\"}\n").await;
    let mut statuses = client(&server).pull_model_stream("a:1b".to_owned(), false).await.unwrap();
    assert_eq!(statuses.next().await.unwrap().unwrap().message, "one");
    go_on.send(()).unwrap();
    assert_eq!(statuses.next().await.unwrap().unwrap().message, "two", "this is why larder pulls through the crate");
}

#[tokio::test]
async fn generated_text_that_arrives_in_pieces_is_dropped() {
    let line = "{\"model\":\"a\",\"created_at\":\"\",\"response\":\"word\",\"done\":true}\n";
    let whole = FakeServer::start(move |_| answer(200, &[], line)).await;
    let mut texts = client(&whole).generate_stream(GenerationRequest::new("a".to_owned(), "?")).await.unwrap();
    assert_eq!(texts.next().await.unwrap().unwrap()[0].response, "word");
    let (server, go_on) = in_two_pieces(&line[..20], &line[20..]).await;
    let mut texts = client(&server).generate_stream(GenerationRequest::new("a".to_owned(), "?")).await.unwrap();
    let first = texts.next().await.unwrap().unwrap();
    go_on.send(()).unwrap();
    let rest: Vec<_> = texts.map(Result::unwrap).collect().await;
    assert_eq!((first.len(), rest.concat().len()), (0, 0), "neither half is text, and no error says so");
}

#[tokio::test]
async fn errors_while_generating_are_dropped() {
    let server = FakeServer::start(|_| answer(200, &[], "{\"error\":\"out of memory\"}\n")).await;
    let request = GenerationRequest::new("a".to_owned(), "?");
    let texts = client(&server).generate_stream(request).await.unwrap();
    let texts: Vec<_> = texts.map(Result::unwrap).collect().await;
    assert_eq!(texts.concat().len(), 0);
}

#[tokio::test]
async fn two_lines_of_a_creation_in_one_piece_are_an_error() {
    let server = FakeServer::start(|_| answer(200, &[], "{\"status\":\"a\"}\n{\"status\":\"success\"}\n")).await;
    let request = CreateModelRequest::new("a:1b".to_owned());
    let mut statuses = client(&server).create_model_stream(request).await.unwrap();
    assert!(statuses.next().await.unwrap().is_err());
}

#[tokio::test]
async fn models_are_named_in_the_old_way() {
    let server = FakeServer::start(|_| answer(200, &[], "")).await;
    client(&server).delete_model("a:1b".to_owned()).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].header("content-type"), "application/json");
    let body: Value = serde_json::from_str(&seen[0].body).unwrap();
    assert_eq!((body["name"].as_str(), body.get("model")), (Some("a:1b"), None), "`name` is deprecated by Ollama");
}

#[tokio::test]
async fn an_address_with_a_path_is_used_as_it_is_written() {
    let server = FakeServer::start(|_| answer(200, &[], r#"{"models":[]}"#)).await;
    let address = format!("http://{}/proxy", server.host);
    Ollama::from_url(address.parse().unwrap()).list_local_models().await.unwrap();
    assert_eq!(server.lines(), ["GET /proxyapi/tags"], "so larder ends addresses with a slash");
}
