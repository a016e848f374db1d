//! References: `hf:owner/name@revision/path`, `ollama:qwen3:4b`, `https://…`, `file:/…`, `local`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::digest::ContentName;
use crate::relpath::RelPath;
use crate::text::FromText;

/// Where something comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A Hugging Face repository, or one file of it.
    Hub {
        /// The repository.
        repo: HubRepo,
        /// Branch, tag or commit; `None` means `main`.
        revision: Option<String>,
        /// One file of it; `None` means the repository.
        path: Option<RelPath>,
    },
    /// An image of an Ollama registry.
    Ollama(OllamaName),
    /// A file behind http or https.
    Url(Url),
    /// A file or folder on this machine or on a drive.
    Directory(PathBuf),
    /// Content that another larder of the lab has today. Plans name it; no file does.
    Peer {
        /// The peer, as the inventory calls it.
        peer: String,
        /// The content.
        content: ContentName,
    },
    /// Content that an object store of the lab has today. Plans name it; no file does.
    Bucket {
        /// The bucket, as the inventory calls it.
        bucket: String,
        /// The content.
        content: ContentName,
    },
    /// Made in the lab: there is no upstream.
    Local,
    /// Known by name only.
    Unidentified,
}

/// The kinds of repository on the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HubKind {
    /// `models--…`
    Model,
    /// `datasets--…`
    Dataset,
}

impl HubKind {
    /// The word in API paths and cache folder names.
    pub fn plural(self) -> &'static str {
        match self {
            HubKind::Model => "models",
            HubKind::Dataset => "datasets",
        }
    }
}

/// A repository on the hub: `owner/name`, or one word for a few old ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubRepo {
    /// Model or dataset.
    pub kind: HubKind,
    /// `owner/name`.
    pub id: String,
}

impl fmt::Display for HubRepo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            HubKind::Model => f.write_str(&self.id),
            HubKind::Dataset => write!(f, "datasets/{}", self.id),
        }
    }
}

/// An Ollama model name with every part filled in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OllamaName {
    /// Registry host, with a port if it has one.
    pub host: String,
    /// `library` for Ollama's own models.
    pub namespace: String,
    /// Model.
    pub model: String,
    /// Tag.
    pub tag: String,
}

/// The registry that short names mean.
pub const OLLAMA_HOST: &str = "registry.ollama.ai";

/// `library/qwen3:4b` on the default host prints as `qwen3:4b`.
impl fmt::Display for OllamaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host != OLLAMA_HOST {
            write!(f, "{}/{}/", self.host, self.namespace)?;
        } else if self.namespace != "library" {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}:{}", self.model, self.tag)
    }
}

/// A text that is not a reference, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a source: {reason}")]
pub struct ParseReferenceError {
    text: String,
    reason: String,
}

impl Reference {
    /// The reference to one file of this repository at `revision`; `None` where files have no reference of their own.
    pub fn file(&self, file: &RelPath, revision: Option<&str>) -> Option<Reference> {
        match self {
            Reference::Hub { repo, revision: asked, path: None } => Some(Reference::Hub {
                repo: repo.clone(),
                revision: revision.map(str::to_owned).or_else(|| asked.clone()),
                path: Some(file.clone()),
            }),
            Reference::Hub { repo, revision: asked, path } => Some(Reference::Hub {
                repo: repo.clone(),
                revision: revision.map(str::to_owned).or_else(|| asked.clone()),
                path: path.clone(),
            }),
            Reference::Directory(root) => Some(Reference::Directory(file.under(root))),
            other => Some(other.clone()),
        }
    }

    /// Whether there is anywhere to fetch this from.
    pub fn has_upstream(&self) -> bool {
        !matches!(self, Reference::Local | Reference::Unidentified)
    }

    /// What a server's word about itself or its gates holds for: the authority; of a repository, one revision.
    pub fn place(&self) -> String {
        match self {
            Reference::Hub { repo, revision, .. } => format!("hf:{repo}@{}", revision.as_deref().unwrap_or("main")),
            other => other.authority(),
        }
    }

    /// What is asked for permission as one: the repository, the registry, or the host.
    pub fn authority(&self) -> String {
        match self {
            Reference::Hub { repo, .. } => format!("hf:{repo}"),
            Reference::Ollama(name) => format!("ollama:{name}"),
            Reference::Url(url) => url.origin().ascii_serialization(),
            Reference::Directory(path) => format!("file:{}", path.display()),
            Reference::Peer { peer, .. } => format!("peer:{peer}"),
            Reference::Bucket { bucket, .. } => format!("bucket:{bucket}"),
            Reference::Local | Reference::Unidentified => self.to_string(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Hub { repo, revision, path } => {
                write!(f, "hf:{repo}")?;
                // A branch may be called refs/pr/1; its slashes must not look like the path.
                revision.iter().try_for_each(|revision| write!(f, "@{}", revision.replace('/', "%2F")))?;
                path.iter().try_for_each(|path| write!(f, "/{path}"))
            }
            Reference::Ollama(name) => write!(f, "ollama:{name}"),
            Reference::Url(url) => write!(f, "{url}"),
            Reference::Directory(path) => write!(f, "file:{}", path.display()),
            Reference::Peer { peer, content } => write!(f, "peer:{peer}/{content}"),
            Reference::Bucket { bucket, content } => write!(f, "bucket:{bucket}/{content}"),
            Reference::Local => f.write_str("local"),
            Reference::Unidentified => f.write_str("unidentified"),
        }
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused =
            |reason: &str| ParseReferenceError { text: text.chars().take(300).collect(), reason: reason.to_owned() };
        if let Some(rest) = text.strip_prefix("hf:") {
            return parse_hub(rest).map_err(|reason| refused(&reason));
        }
        if let Some(rest) = text.strip_prefix("ollama:") {
            return rest.parse().map(Reference::Ollama).map_err(|reason: String| refused(&reason));
        }
        if let Some(path) = text.strip_prefix("file:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            // Not `~` either: a lock is shared between machines and users, and means the same on each.
            return if path.starts_with('/') {
                Ok(Reference::Directory(PathBuf::from(path)))
            } else {
                Err(refused("a file: source needs an absolute path, such as file:/srv/models"))
            };
        }
        match text {
            "local" => return Ok(Reference::Local),
            "unidentified" => return Ok(Reference::Unidentified),
            _ => {}
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return match Url::parse(text) {
                Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                    Err(refused("a URL with a name or password in it would put a secret into the lock"))
                }
                Ok(url) => Ok(Reference::Url(url)),
                Err(error) => Err(refused(&error.to_string())),
            };
        }
        Err(refused(
            "write hf:OWNER/NAME[@REVISION][/PATH], ollama:MODEL:TAG, https://…, file:/PATH, local or unidentified",
        ))
    }
}

fn parse_hub(text: &str) -> Result<Reference, String> {
    let (kind, text) = match text.strip_prefix("datasets/") {
        Some(rest) => (HubKind::Dataset, rest),
        None => (HubKind::Model, text.strip_prefix("models/").unwrap_or(text)),
    };
    let (id, rest) = match text.split_once('@') {
        Some((id, rest)) => (id, Some(rest)),
        None => (text, None),
    };
    if let Some(rest) = rest {
        // A revision may contain slashes only when percent-encoded, so the first slash begins the path.
        let decoded = |revision: &str| {
            if revision.contains('%') { revision.replace("%2F", "/").replace("%2f", "/") } else { revision.to_owned() }
        };
        let (revision, path) = match rest.split_once('/') {
            Some((revision, path)) => (decoded(revision), Some(path)),
            None => (decoded(rest), None),
        };
        if revision.is_empty() || revision.contains("..") || revision.contains(char::is_whitespace) {
            return Err("the revision after @ is not a branch, tag or commit".to_owned());
        }
        check_repo_id(id)?;
        return hub(kind, id, Some(revision), path);
    }
    let mut parts = id.splitn(3, '/');
    let (owner, name, path) = (parts.next().unwrap_or(""), parts.next(), parts.next());
    let id = name.map_or_else(|| owner.to_owned(), |name| format!("{owner}/{name}"));
    check_repo_id(&id)?;
    hub(kind, &id, None, path)
}

fn hub(kind: HubKind, id: &str, revision: Option<String>, path: Option<&str>) -> Result<Reference, String> {
    let path = path.map(str::parse).transpose().map_err(|error: crate::relpath::UnsafePath| error.to_string())?;
    Ok(Reference::Hub { repo: HubRepo { kind, id: id.to_owned() }, revision, path })
}

fn check_repo_id(id: &str) -> Result<(), String> {
    let part_is_good = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !part.starts_with(['-', '.'])
            && !part.contains("--")
            && !part.contains("..")
    };
    let parts = id.split('/').count();
    if (1..=2).contains(&parts) && id.split('/').all(part_is_good) {
        Ok(())
    } else {
        Err(format!("{id:?} is not a repository name such as openai/clip-vit-large-patch14"))
    }
}

impl FromStr for OllamaName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, tag) = match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (text, "latest"),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let (host, namespace, model) = match parts[..] {
            [model] => (OLLAMA_HOST, "library", model),
            [namespace, model] => (OLLAMA_HOST, namespace, model),
            [host, namespace, model] => (host, namespace, model),
            _ => return Err("an Ollama name is [HOST/][NAMESPACE/]MODEL[:TAG]".to_owned()),
        };
        let good = |part: &str, extra: &[char], limit: usize| {
            part.len() <= limit
                && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-') || extra.contains(&c))
        };
        if !good(host, &['.', ':'], 350) {
            return Err(format!("{host:?} is not a registry host"));
        }
        if !(good(namespace, &[], 80) && good(model, &['.'], 80) && good(tag, &['.'], 80)) {
            return Err(format!("{text:?} is not an Ollama name such as qwen3:4b"));
        }
        Ok(Self {
            host: host.to_owned(),
            namespace: namespace.to_owned(),
            model: model.to_owned(),
            tag: tag.to_owned(),
        })
    }
}

impl Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_print_as_they_were_written() {
        for text in [
            "hf:stabilityai/stable-diffusion-3.5-large",
            "hf:gpt2",
            "hf:stabilityai/sd@ceddf0a7/text_encoder/model.safetensors",
            "hf:mcmonkey/google_t5-v1_1-xxl_encoderonly/t5xxl_fp8_e4m3fn.safetensors",
            "hf:datasets/acme/images@refs%2Fpr%2F1",
            "ollama:qwen3:4b",
            "ollama:acme/tiny:latest",
            "ollama:127.0.0.1:5000/library/x:1b",
            "https://example.org/a/b.pth",
            "file:/srv/models",
            "local",
            "unidentified",
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn texts_that_are_no_references_are_refused() {
        for text in [
            "",
            "hf:",
            "hf:a/b/../c",
            "hf:-a/b",
            "hf:a/b@",
            "ollama:",
            "ollama:a/b/c/d",
            "ollama:../x",
            "ftp://x/y",
            "https://user:secret@example.org/x",
            "file:relative",
            "file:~/models",
            "qwen3:4b",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
        }
    }
}
