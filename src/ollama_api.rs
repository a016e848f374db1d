//! A running Ollama server, which installs models for its own store when larder may not write there.
//!
//! `docs/decisions/0003-ollama-rs.md` says what goes through the `ollama-rs` crate and what does not.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use ollama_rs::Ollama;
use ollama_rs::error::OllamaError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::artifact::OllamaName;
use crate::digest::Sha256;

/// How long a server on the same machine may take to answer a question.
const PATIENCE: Duration = Duration::from_secs(60);

/// The API of one Ollama server.
#[derive(Debug, Clone)]
pub struct OllamaApi {
    base: Url,
    client: reqwest::Client,
    ollama: Ollama,
}

/// A model that the server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Its name as the server prints it.
    pub name: String,
    /// SHA-256 of its manifest.
    pub digest: Sha256,
    /// Bytes that its manifest declares.
    pub size: u64,
}

impl Installed {
    /// Whether this is the model called `name`; Ollama compares names without regard to case.
    pub fn is_named(&self, name: &OllamaName) -> bool {
        self.name.eq_ignore_ascii_case(&name.to_string())
    }
}

/// What the server says of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// What it can do, such as `completion` and `vision`.
    pub capabilities: Vec<String>,
    /// Where the server keeps its weights: tells which store the server reads.
    pub blob: Option<PathBuf>,
}

/// One model to install through a mirror.
#[derive(Debug, Clone)]
pub struct Pull<'a> {
    /// The name under which the mirror serves it, the mirror's address as the server sees it included.
    pub mirror: &'a OllamaName,
    /// The name that it must have in the end.
    pub name: &'a OllamaName,
    /// SHA-256 of its manifest.
    pub digest: Sha256,
    /// Whether the mirror speaks plain http.
    pub insecure: bool,
}

/// How far a pull has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// The server's words.
    pub status: String,
    /// The blob that is being fetched.
    pub digest: Option<String>,
    /// Its length in bytes.
    pub total: Option<u64>,
    /// Bytes of it that have arrived.
    pub completed: Option<u64>,
}

/// What a server did not do.
#[derive(Debug, thiserror::Error)]
pub enum OllamaApiError {
    /// No connection, or one that broke.
    #[error("The Ollama server at {server} cannot be reached")]
    Unreachable {
        /// Its address.
        server: Url,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server said no; its words are all there is to tell why.
    #[error("The Ollama server at {server} did not {what}: {message}")]
    Refused {
        /// Its address.
        server: Url,
        /// What it was asked to do.
        what: String,
        /// Its words.
        message: String,
    },
    /// The progress of a pull ended without a result.
    #[error("The Ollama server at {server} stopped pulling {name} without finishing or saying why")]
    BrokeOff {
        /// Its address.
        server: Url,
        /// The model.
        name: String,
    },
    /// The server has another model under this name than the wanted one.
    #[error("The Ollama server at {server} has {} as {name}, wanted is {wanted}", shown(actual))]
    Different {
        /// Its address.
        server: Url,
        /// The model.
        name: String,
        /// The digest of the wanted manifest.
        wanted: Sha256,
        /// The digest of the manifest that is there.
        actual: Option<Sha256>,
    },
    /// Something that is not Ollama's API answered.
    #[error("{server} does not answer {path} as Ollama does: {reason}")]
    NotOllama {
        /// Its address.
        server: Url,
        /// What was asked.
        path: &'static str,
        /// What is wrong.
        reason: String,
    },
}

fn shown(digest: &Option<Sha256>) -> String {
    digest.map_or_else(|| "nothing".to_owned(), |digest| digest.to_string())
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
struct Tags {
    models: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    name: String,
    digest: Sha256,
    size: u64,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error: String,
}

impl OllamaApi {
    /// Prepares questions to the server at `base`; no request is made.
    pub fn new(base: Url) -> Self {
        let mut base = base;
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        Self { client: reqwest::Client::new(), ollama: Ollama::from_url(base.clone()), base }
    }

    /// The server's version, such as `0.33.0`.
    pub async fn version(&self) -> Result<String, OllamaApiError> {
        self.get::<Version>("api/version").await.map(|answer| answer.version)
    }

    /// All models that the server has.
    pub async fn installed(&self) -> Result<Vec<Installed>, OllamaApiError> {
        let tags: Tags = self.get("api/tags").await?;
        let installed = |Tag { name, digest, size }| Installed { name, digest, size };
        Ok(tags.models.into_iter().map(installed).collect())
    }

    /// Asks the server to look at one model, which makes it read the weights' header.
    pub async fn show(&self, name: &OllamaName) -> Result<Shown, OllamaApiError> {
        let model = self.ollama.show_model_info(name.to_string()).await;
        let model = model.map_err(|error| self.failed(format!("show {name}"), error))?;
        let paths = model.modelfile.lines().filter_map(|line| line.strip_prefix("FROM "));
        let blob = paths.map(|path| PathBuf::from(path.trim())).find(|path| path.is_absolute());
        Ok(Shown { capabilities: model.capabilities, blob })
    }

    /// Gives `from` a second name.
    pub async fn copy(&self, from: &OllamaName, to: &OllamaName) -> Result<(), OllamaApiError> {
        let copied = self.ollama.copy_model(from.to_string(), to.to_string()).await;
        copied.map_err(|error| self.failed(format!("copy {from} to {to}"), error))
    }

    /// Removes a name, and what only this name used.
    pub async fn delete(&self, name: &OllamaName) -> Result<(), OllamaApiError> {
        let deleted = self.ollama.delete_model(name.to_string()).await;
        deleted.map_err(|error| self.failed(format!("delete {name}"), error))
    }

    /// Lets the server pull `pull.mirror`, and gives the result its proper name.
    ///
    /// The manifest's digest is compared before and after the renaming: with another one the proper
    /// name keeps what it had. The mirror's name is removed again in any case.
    pub async fn pull_from(
        &self,
        pull: &Pull<'_>,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<(), OllamaApiError> {
        self.pull(pull.mirror, pull.insecure, progress).await?;
        if pull.mirror == pull.name {
            return self.check_digest(pull.name, pull.digest).await;
        }
        let renamed = self.rename(pull).await;
        let deleted = self.delete(pull.mirror).await;
        renamed.and(deleted)?;
        self.check_digest(pull.name, pull.digest).await
    }

    async fn rename(&self, pull: &Pull<'_>) -> Result<(), OllamaApiError> {
        self.check_digest(pull.mirror, pull.digest).await?;
        self.copy(pull.mirror, pull.name).await
    }

    async fn pull(
        &self,
        name: &OllamaName,
        insecure: bool,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<(), OllamaApiError> {
        let failed = |error| self.failed(format!("pull {name}"), error);
        // Once the stream has begun, the server's own errors come as lines; anything else is the connection.
        let interrupted = |error| match error {
            OllamaError::Other(text) => OllamaApiError::Unreachable { server: self.base.clone(), source: text.into() },
            error => failed(error),
        };
        let mut statuses = self.ollama.pull_model_stream(name.to_string(), insecure).await.map_err(failed)?;
        let mut succeeded = false;
        while let Some(status) = statuses.next().await {
            let status = status.map_err(interrupted)?;
            succeeded = status.message == "success";
            progress(PullProgress {
                status: status.message,
                digest: status.digest,
                total: status.total,
                completed: status.completed,
            });
        }
        let broke_off = || OllamaApiError::BrokeOff { server: self.base.clone(), name: name.to_string() };
        succeeded.then_some(()).ok_or_else(broke_off)
    }

    async fn check_digest(&self, name: &OllamaName, wanted: Sha256) -> Result<(), OllamaApiError> {
        let installed = self.installed().await?;
        let found = installed.iter().find(|model| model.is_named(name));
        let actual = found.map(|model| model.digest);
        if actual == Some(wanted) {
            return Ok(());
        }
        Err(OllamaApiError::Different { server: self.base.clone(), name: name.to_string(), wanted, actual })
    }

    async fn get<T: DeserializeOwned>(&self, path: &'static str) -> Result<T, OllamaApiError> {
        let server = || self.base.clone();
        let unreachable =
            |source: reqwest::Error| OllamaApiError::Unreachable { server: server(), source: source.into() };
        let address = self.base.join(path).map_err(|error| self.not_ollama(path, error.to_string()))?;
        let answer = self.client.get(address).timeout(PATIENCE).send().await.map_err(unreachable)?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(unreachable)?;
        if !status.is_success() {
            let message = format!("{status} {}", told(&String::from_utf8_lossy(&bytes)));
            return Err(OllamaApiError::Refused { server: server(), what: format!("answer {path}"), message });
        }
        serde_json::from_slice(&bytes).map_err(|error| self.not_ollama(path, error.to_string()))
    }

    fn not_ollama(&self, path: &'static str, reason: String) -> OllamaApiError {
        OllamaApiError::NotOllama { server: self.base.clone(), path, reason }
    }

    fn failed(&self, what: String, error: OllamaError) -> OllamaApiError {
        let server = self.base.clone();
        match error {
            OllamaError::ReqwestError(source) => OllamaApiError::Unreachable { server, source: source.into() },
            OllamaError::InternalError(error) => OllamaApiError::Refused { server, what, message: error.message },
            OllamaError::Other(text) => OllamaApiError::Refused { server, what, message: told(&text) },
            other => OllamaApiError::Refused { server, what, message: format!("its answer makes no sense: {other:?}") },
        }
    }
}

/// The server's own words in an answer of `{"error": …}`, or the beginning of any other answer.
fn told(text: &str) -> String {
    let told = serde_json::from_str(text).map(|ErrorAnswer { error }| error);
    told.unwrap_or_else(|_| text.chars().filter(|c| !c.is_control()).take(300).collect())
}
