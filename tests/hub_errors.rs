//! What larder says when the hub refuses, and where the token goes.

#![expect(clippy::unwrap_used, reason = "tests")]

use larder::artifact::{Reference, Remote};
use larder::digest::Digests;
use larder::sources::{ByteRange, SourceError, SourceSettings, Sources};

#[path = "support/hub.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod hub;

use hub::{Access, Fault, Hub};

const GOOD: &str = "hf_goodsecret";
const STRANGER: &str = "hf_strangersecret";

/// One repository of each kind, all with a git file and an LFS file.
fn hub() -> Hub {
    let hub = Hub::start();
    for id in ["acme/tiny", "acme/private", "acme/gated", "acme/disabled"] {
        hub.commit(id, &[("config.json", b"{}", false), ("model.bin", b"weights", true)]);
    }
    hub.allow("acme/private", Access::Private(vec![GOOD.to_owned()]));
    let known = vec![GOOD.to_owned(), STRANGER.to_owned()];
    hub.allow("acme/gated", Access::Gated { accepted: vec![GOOD.to_owned()], known });
    hub.allow("acme/disabled", Access::Disabled);
    hub
}

fn sources(hub: &Hub, token: Option<&str>) -> Sources {
    let settings = SourceSettings {
        hub_endpoint: Some(hub.origin.parse().unwrap()),
        hub_token: token.map(str::to_owned),
        ..SourceSettings::default()
    };
    Sources::new(&settings).unwrap()
}

fn remote(reference: &str) -> Remote {
    Remote { reference: reference.parse().unwrap(), size: None, digests: Digests::default() }
}

/// Message, hint and whether it is permanent; the hub's address is written as `HUB`.
fn told(hub: &Hub, error: &SourceError) -> String {
    let hint = error.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
    let again = if error.is_permanent() { "" } else { "\n(is tried again)" };
    let wait = error.wait().map(|wait| format!("\nafter {} s", wait.as_secs())).unwrap_or_default();
    let text = format!("{error}{hint}{again}{wait}").replace(&hub.origin, "HUB").replace(&hub.cdn, "CDN");
    let text = without_commits(&text);
    assert!(!text.contains("secret"), "{text}");
    text
}

/// Commits are different in every test: they are written as `COMMIT`.
fn without_commits(text: &str) -> String {
    let words = text.split_inclusive(|c: char| !c.is_ascii_hexdigit());
    words.map(|word| if word.len() >= 40 { format!("COMMIT{}", &word[40..]) } else { word.to_owned() }).collect()
}

/// What opening a file says; checking it must say the same.
async fn open(hub: &Hub, reference: &str, token: Option<&str>) -> String {
    let (sources, remote) = (sources(hub, token), remote(reference));
    let source = sources.for_reference(&remote.reference).unwrap();
    let opened = told(hub, &source.open(&remote, ByteRange::default()).await.unwrap_err());
    let checked = told(hub, &source.check(&remote).await.unwrap_err());
    assert_eq!(opened, checked, "to open and to check must agree");
    opened
}

async fn list(hub: &Hub, reference: &str, token: Option<&str>) -> String {
    let (sources, reference): (_, Reference) = (sources(hub, token), reference.parse().unwrap());
    told(hub, &sources.for_reference(&reference).unwrap().list(&reference).await.unwrap_err())
}

#[tokio::test]
async fn without_a_token_a_private_or_gated_file_asks_for_one() {
    let hub = hub();
    insta::assert_snapshot!(open(&hub, "hf:acme/gated/model.bin", None).await, @r#"
    hf:acme/gated asks for a token, and none is set
    hint: check the name (the hub answers the same where nothing exists), then set HF_TOKEN or log in once with: hf auth login
    "#);
    insta::assert_snapshot!(open(&hub, "hf:acme/private/model.bin", None).await, @r#"
    hf:acme/private asks for a token, and none is set
    hint: check the name (the hub answers the same where nothing exists), then set HF_TOKEN or log in once with: hf auth login
    "#);
    insta::assert_snapshot!(list(&hub, "hf:acme/misspelt", None).await, @r#"
    hf:acme/misspelt asks for a token, and none is set
    hint: check the name (the hub answers the same where nothing exists), then set HF_TOKEN or log in once with: hf auth login
    "#);
}

#[tokio::test]
async fn a_licence_that_is_not_accepted_names_the_page() {
    let hub = hub();
    insta::assert_snapshot!(open(&hub, "hf:acme/gated/config.json", Some(STRANGER)).await, @r#"
    hf:acme/gated is gated: its licence is not accepted for this token
    hint: accept the licence at HUB/acme/gated with the token's user, or add a machine that has the files
    "#);
}

#[tokio::test]
async fn a_token_that_nobody_knows_is_refused() {
    let hub = hub();
    insta::assert_snapshot!(open(&hub, "hf:acme/gated/config.json", Some("hf_unknownsecret")).await, @r#"
    hf:acme/gated does not accept the token, or does not exist
    hint: check the name, and make a token that may read it at https://huggingface.co/settings/tokens
    "#);
}

#[tokio::test]
async fn a_disabled_repository_repeats_the_hubs_words() {
    let hub = hub();
    insta::assert_snapshot!(open(&hub, "hf:acme/disabled/config.json", Some(GOOD)).await, @r#"
    hf:acme/disabled may not be read: Access to this resource is disabled
    hint: what arrived is kept: its server does not give it to this machine; name a mirror, or add a machine that has the files
    "#);
    insta::assert_snapshot!(list(&hub, "hf:acme/disabled", Some(GOOD)).await, @r#"
    hf:acme/disabled may not be read: Access to this resource is disabled
    hint: what arrived is kept: its server does not give it to this machine; name a mirror, or add a machine that has the files
    "#);
}

#[tokio::test]
async fn what_does_not_exist_is_named_as_far_as_the_hub_tells() {
    let hub = hub();
    insta::assert_snapshot!(list(&hub, "hf:acme/misspelt", Some(GOOD)).await, @r#"hf:acme/misspelt does not exist"#);
    insta::assert_snapshot!(list(&hub, "hf:acme/tiny@v2", None).await, @r#"Revision v2 of hf:acme/tiny does not exist"#);
    insta::assert_snapshot!(list(&hub, "hf:acme/tiny/none.bin", None).await, @r#"hf:acme/tiny@COMMIT/none.bin does not exist"#);
    insta::assert_snapshot!(open(&hub, "hf:acme/tiny@v2/config.json", None).await, @r#"Revision v2 of hf:acme/tiny does not exist"#);
    insta::assert_snapshot!(open(&hub, "hf:acme/tiny/none.bin", None).await, @r#"hf:acme/tiny@main/none.bin does not exist"#);
}

#[tokio::test]
async fn a_hub_that_is_busy_is_asked_again_when_it_says_so() {
    let hub = hub();
    hub.fail("config.json", Fault::RetryAfter(503, "7"), 2);
    insta::assert_snapshot!(open(&hub, "hf:acme/tiny/config.json", None).await, @r#"
    hf:acme/tiny@main/config.json answered 503
    hint: what arrived is kept: the server has a problem of its own; run the same command again later, or name a mirror
    (is tried again)
    after 7 s
    "#);
    // A date that has passed asks for no wait.
    hub.fail("config.json", Fault::RetryAfter(429, "Wed, 21 Oct 2015 07:28:00 GMT"), 2);
    insta::assert_snapshot!(open(&hub, "hf:acme/tiny/config.json", None).await, @r#"
    hf:acme/tiny@main/config.json asks to slow down
    hint: what arrived is kept: run the same command again later; fewer [sources] connections ask less at once
    (is tried again)
    after 0 s
    "#);
    hub.fail("tree", Fault::RateLimited { seconds: 172 }, 1);
    insta::assert_snapshot!(list(&hub, "hf:acme/tiny", None).await, @r#"
    hf:acme/tiny@COMMIT asks to slow down
    hint: what arrived is kept: run the same command again later; fewer [sources] connections ask less at once
    (is tried again)
    after 173 s
    "#);
}

#[tokio::test]
async fn a_list_with_a_name_that_leads_out_is_refused_whole() {
    let hub = hub();
    hub.commit("acme/evil", &[("config.json", b"{}", false), ("../../.ssh/authorized_keys", b"x", false)]);
    let told = list(&hub, "hf:acme/evil", None).await;
    insta::assert_snapshot!(told, @r#"hf:acme/evil@COMMIT sent an answer that makes no sense: "../../.ssh/authorized_keys" cannot be used as a file name here: it has a part that is . or .."#);
}

#[tokio::test]
async fn the_api_is_not_followed_to_another_server() {
    let hub = hub();
    hub.fail("/tree/", Fault::Redirect(format!("{}/tree", hub.cdn)), 1);
    let told = list(&hub, "hf:acme/tiny", Some(GOOD)).await;
    insta::assert_snapshot!(told, @r#"hf:acme/tiny@COMMIT sent an answer that makes no sense: its API leads to another server, CDN"#);
    assert_eq!(hub.count(|logged| logged.on_cdn), 0);
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_nowhere_else() {
    let hub = hub();
    let sources = sources(&hub, Some(GOOD));
    for file in ["config.json", "model.bin"] {
        let remote = remote(&format!("hf:acme/gated/{file}"));
        let source = sources.for_reference(&remote.reference).unwrap();
        source.check(&remote).await.unwrap();
        let (bytes, end) = read(source.open(&remote, ByteRange::default()).await.unwrap()).await;
        end.unwrap();
        assert!(bytes == b"{}" || bytes == b"weights");
    }
    let reference: Reference = "hf:acme/gated".parse().unwrap();
    assert_eq!(sources.for_reference(&reference).unwrap().list(&reference).await.unwrap().files.len(), 2);
    let log = hub.log();
    assert!(log.iter().filter(|logged| !logged.on_cdn).all(|logged| logged.authorized), "{log:#?}");
    assert_eq!(log.iter().filter(|logged| logged.on_cdn).count(), 1);
    assert!(log.iter().filter(|logged| logged.on_cdn).all(|logged| !logged.authorized), "{log:#?}");

    // The same address as a plain download carries no token at all.
    hub.clear_log();
    let plain = remote(&format!("{}/acme/tiny/resolve/main/model.bin", hub.origin));
    sources.for_reference(&plain.reference).unwrap().open(&plain, ByteRange::default()).await.unwrap();
    assert_eq!(hub.count(|logged| logged.authorized), 0);
}

async fn read(body: larder::sources::Body) -> (Vec<u8>, Result<(), SourceError>) {
    use futures_util::TryStreamExt;
    let mut bytes = Vec::new();
    let end = body.stream.try_for_each(|piece| {
        bytes.extend_from_slice(&piece);
        std::future::ready(Ok(()))
    });
    let end = end.await;
    (bytes, end)
}
