//! What a request's path asks for.

use axum::http::Method;
use percent_encoding::percent_decode_str;

use crate::artifact::{HubKind, HubRepo};
use crate::digest::{ContentName, XetHash};
use crate::serve::metrics::Face;

/// What is asked for. Names are decoded, but not yet looked up: they may be anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    Home,
    Lock,
    Metrics,
    WhoAmI,
    /// Every way to read the path, the likelier first: `acme/refs` may be a repository or the refs of `acme`.
    Hub(Vec<HubRequest>),
    Xet(XetAsk),
    RegistryVersion,
    RegistryCatalog,
    Registry {
        repository: String,
        item: RegistryItem,
    },
    File {
        artifact: String,
        path: String,
    },
    Have,
    Blob {
        content: ContentName,
    },
    Bring {
        content: ContentName,
    },
    Chunks {
        digest: String,
    },
    /// Means nothing, to whichever face it was said.
    Nothing {
        face: Face,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubRequest {
    pub(crate) repo: HubRepo,
    pub(crate) ask: HubAsk,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HubAsk {
    Summary { revision: Option<String> },
    Tree { revision: String, path: String },
    PathsInfo { revision: String },
    Refs,
    Resolve { revision: String, path: String },
    XetPass { revision: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum XetAsk {
    Reconstruction { question: Question, hash: XetHash },
    Xorb { hash: XetHash },
}

/// The two ways to ask what a file is put together from; the older one is what older clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    V1,
    V2,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RegistryItem {
    Manifest { reference: String },
    Blob { digest: String },
    Tags,
}

impl Route {
    /// Reads a path. The words `api`, `v2`, `files`, `blobs`, `bring`, `chunks`, `have`, `lock` and `metrics` at its beginning are never a repository.
    pub(crate) fn parse(path: &str) -> Self {
        parse(path).unwrap_or_else(|| Route::Nothing { face: face_of(path) })
    }

    /// Whose question it is.
    pub(crate) fn face(&self) -> Face {
        match self {
            Route::Hub(_) | Route::WhoAmI => Face::Hub,
            Route::Xet(_) => Face::Xet,
            Route::RegistryVersion | Route::RegistryCatalog | Route::Registry { .. } => Face::Registry,
            Route::Nothing { face } => *face,
            _ => Face::Larder,
        }
    }

    pub(crate) fn allows(&self, method: &Method) -> bool {
        self.methods().iter().any(|allowed| *allowed == method.as_str())
    }

    pub(crate) fn methods(&self) -> &'static [&'static str] {
        match self {
            Route::Hub(asked) if asked.iter().any(|asked| matches!(asked.ask, HubAsk::PathsInfo { .. })) => &["POST"],
            Route::Bring { .. } => &["POST"],
            _ => &["GET", "HEAD"],
        }
    }
}

fn parse(path: &str) -> Option<Route> {
    let parts = decode(path)?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    Some(match parts[..] {
        [""] => Route::Home,
        ["lock"] => Route::Lock,
        ["metrics"] => Route::Metrics,
        ["api", "whoami-v2"] => Route::WhoAmI,
        ["api", "xet", ref rest @ ..] => Route::Xet(xet_ask(rest)?),
        ["api", kind, ref rest @ ..] => Route::Hub(api_requests(hub_kind(kind)?, rest)?),
        ["v2"] | ["v2", ""] => Route::RegistryVersion,
        ["v2", "_catalog"] => Route::RegistryCatalog,
        ["v2", ref repository @ .., kind, item] if !repository.is_empty() => {
            Route::Registry { repository: repository.join("/"), item: registry_item(kind, item)? }
        }
        ["files", artifact, ref path @ ..] if !path.is_empty() => {
            Route::File { artifact: artifact.to_owned(), path: path.join("/") }
        }
        ["have"] => Route::Have,
        ["blobs", "sha256", digest] => Route::Blob { content: ContentName::Sha256(digest.parse().ok()?) },
        ["blobs", "git-sha1", digest] => Route::Blob { content: ContentName::GitSha1(digest.parse().ok()?) },
        ["bring", "sha256", digest] => Route::Bring { content: ContentName::Sha256(digest.parse().ok()?) },
        ["bring", "git-sha1", digest] => Route::Bring { content: ContentName::GitSha1(digest.parse().ok()?) },
        ["chunks", "sha256", digest] => Route::Chunks { digest: digest.to_owned() },
        ["api" | "v2" | "files" | "blobs" | "bring" | "chunks" | "have" | "lock" | "metrics", ..] => return None,
        ["datasets", ref rest @ ..] => Route::Hub(resolve_requests(HubKind::Dataset, rest)?),
        ref rest => Route::Hub(resolve_requests(HubKind::Model, rest)?),
    })
}

/// Whose words a path begins with.
fn face_of(path: &str) -> Face {
    match path.split('/').nth(1) {
        Some("v2") => Face::Registry,
        Some("api") if path.starts_with("/api/xet/") => Face::Xet,
        Some("files" | "blobs" | "bring" | "chunks" | "have" | "lock" | "metrics") | None => Face::Larder,
        _ => Face::Hub,
    }
}

/// The parts between the slashes, each decoded by itself; `None` where that gives no text.
fn decode(path: &str) -> Option<Vec<String>> {
    let path = path.strip_prefix('/')?;
    path.split('/').map(|part| percent_decode_str(part).decode_utf8().ok().map(|part| part.into_owned())).collect()
}

fn hub_kind(word: &str) -> Option<HubKind> {
    [HubKind::Model, HubKind::Dataset].into_iter().find(|kind| kind.plural() == word)
}

fn xet_ask(parts: &[&str]) -> Option<XetAsk> {
    let ask = |question, hash: &str| Some(XetAsk::Reconstruction { question, hash: hash.parse().ok()? });
    match parts {
        ["v1", "reconstructions", hash] => ask(Question::V1, hash),
        ["v2", "reconstructions", hash] => ask(Question::V2, hash),
        ["xorbs", hash] => Some(XetAsk::Xorb { hash: hash.parse().ok()? }),
        _ => None,
    }
}

fn registry_item(kind: &str, item: &str) -> Option<RegistryItem> {
    match kind {
        "manifests" => Some(RegistryItem::Manifest { reference: item.to_owned() }),
        "blobs" => Some(RegistryItem::Blob { digest: item.to_owned() }),
        "tags" if item == "list" => Some(RegistryItem::Tags),
        _ => None,
    }
}

fn api_requests(kind: HubKind, parts: &[&str]) -> Option<Vec<HubRequest>> {
    requests(kind, parts, |rest| match rest {
        [] => Some(HubAsk::Summary { revision: None }),
        ["revision", revision] => Some(HubAsk::Summary { revision: Some((*revision).to_owned()) }),
        ["tree", revision, path @ ..] => Some(HubAsk::Tree { revision: (*revision).to_owned(), path: path.join("/") }),
        ["paths-info", revision] => Some(HubAsk::PathsInfo { revision: (*revision).to_owned() }),
        ["refs"] => Some(HubAsk::Refs),
        ["xet-read-token", revision] => Some(HubAsk::XetPass { revision: (*revision).to_owned() }),
        _ => None,
    })
}

fn resolve_requests(kind: HubKind, parts: &[&str]) -> Option<Vec<HubRequest>> {
    requests(kind, parts, |rest| match rest {
        ["resolve", revision, path @ ..] if !path.is_empty() => {
            Some(HubAsk::Resolve { revision: (*revision).to_owned(), path: path.join("/") })
        }
        _ => None,
    })
}

/// Repositories have two words, and a few old ones have one.
fn requests(kind: HubKind, parts: &[&str], ask: impl Fn(&[&str]) -> Option<HubAsk>) -> Option<Vec<HubRequest>> {
    let readings = [2, 1].into_iter().filter_map(|words| {
        let (id, rest) = parts.split_at_checked(words)?;
        Some(HubRequest { repo: HubRepo { kind, id: id.join("/") }, ask: ask(rest)? })
    });
    Some(readings.collect::<Vec<_>>()).filter(|readings| !readings.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    fn hub(path: &str) -> Vec<(String, HubAsk)> {
        match Route::parse(path) {
            Route::Hub(asked) => asked.into_iter().map(|asked| (asked.repo.to_string(), asked.ask)).collect(),
            other => panic!("{path} is {other:?}"),
        }
    }

    fn tree(path: &str) -> HubAsk {
        HubAsk::Tree { revision: "main".into(), path: path.into() }
    }

    #[test]
    fn repositories_of_one_and_two_words_are_told_apart_by_the_word_that_follows() {
        assert_eq!(hub("/api/models/gpt2/tree/main"), [("gpt2".into(), tree(""))]);
        assert_eq!(hub("/api/datasets/acme/images/tree/main"), [("datasets/acme/images".into(), tree(""))]);
        assert_eq!(hub("/api/models/a/b/tree/main/x%2Fy"), [("a/b".into(), tree("x/y"))]);
        assert_eq!(hub("/api/models/a/b/tree/main/x/y"), [("a/b".into(), tree("x/y"))]);
        let either = [("acme/refs".into(), HubAsk::Summary { revision: None }), ("acme".into(), HubAsk::Refs)];
        assert_eq!(hub("/api/models/acme/refs"), either);
        let resolve = HubAsk::Resolve { revision: "refs/pr/1".into(), path: "a b/c".into() };
        assert_eq!(hub("/gpt2/resolve/refs%2Fpr%2F1/a%20b/c"), [("gpt2".into(), resolve)]);
    }

    #[test]
    fn paths_that_mean_nothing_are_nothing() {
        for path in [
            "",
            "*",
            "/api",
            "/api/spaces/a/b",
            "/api/xet/v2/reconstructions/x",
            "/api/xet/v3/xorbs",
            "/v2/a/b",
            "/files/x",
            "/blobs/md5/0",
            "/a/b",
            "/a/%ff/resolve/m/x",
        ] {
            assert!(matches!(Route::parse(path), Route::Nothing { .. }), "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_read_without_panic(path in "(/|/api/models|/api/xet|/v2|/files)?(/([a-z.%0-9]{0,4}|resolve|tree|refs|manifests|reconstructions)){0,7}") {
            let _ = Route::parse(&path);
        }
    }
}
