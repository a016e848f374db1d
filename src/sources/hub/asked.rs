//! What is asked of the hub: its address, its name in messages, and what a refusal of it means.

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use url::Url;

use crate::artifact::{HubKind, HubRepo};
use crate::relpath::RelPath;
use crate::sources::SourceError;
use crate::sources::body::{printable, refusal};

/// A revision of a repository, or one file of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) repo: &'a HubRepo,
    pub(super) revision: &'a str,
    pub(super) path: Option<&'a RelPath>,
}

impl Asked<'_> {
    /// The API's address for `question` (`revision`, `tree`, `paths-info`).
    pub(super) fn api(&self, endpoint: &Url, question: &str) -> Url {
        let id = self.repo.id.split('/');
        extend(endpoint, ["api", self.repo.kind.plural()].into_iter().chain(id).chain([question, self.revision]))
    }

    /// The address of the file's content.
    pub(super) fn resolve(&self, endpoint: &Url) -> Url {
        let kind = (self.repo.kind == HubKind::Dataset).then_some("datasets");
        let id = self.repo.id.split('/');
        let path = self.path.into_iter().flat_map(RelPath::parts);
        extend(endpoint, kind.into_iter().chain(id).chain(["resolve", self.revision]).chain(path))
    }

    /// The reference, as manifests write it.
    pub(super) fn name(&self) -> String {
        let revision = self.revision.replace('/', "%2F");
        let path = self.path.map(|path| format!("/{path}")).unwrap_or_default();
        format!("hf:{}@{revision}{path}", self.repo)
    }

    fn repo_name(&self) -> String {
        format!("hf:{}", self.repo)
    }

    /// The repository's page for people.
    fn page(&self, endpoint: &Url) -> String {
        let kind = (self.repo.kind == HubKind::Dataset).then_some("datasets");
        extend(endpoint, kind.into_iter().chain(self.repo.id.split('/'))).into()
    }

    /// What the hub's refusal means, and whom it concerns.
    pub(super) fn refusal(&self, endpoint: &Url, with_token: bool, answer: (StatusCode, &HeaderMap)) -> SourceError {
        let (status, headers) = answer;
        let code = headers.get("x-error-code").and_then(|value| value.to_str().ok()).unwrap_or("");
        let what = self.repo_name();
        match status {
            StatusCode::UNAUTHORIZED if !with_token => SourceError::TokenMissing { what },
            StatusCode::UNAUTHORIZED => SourceError::TokenRefused { what },
            StatusCode::FORBIDDEN if code == "GatedRepo" => SourceError::Gated { what, page: self.page(endpoint) },
            StatusCode::FORBIDDEN => refusal(status, headers, &what),
            StatusCode::NOT_FOUND => {
                let (what, whole) = self.missing(code);
                SourceError::NotFound { what, whole }
            }
            _ => refusal(status, headers, &self.name()),
        }
    }

    /// What does not exist, and whether it is more than a file: the hub's code says how much of the name is wrong.
    fn missing(&self, code: &str) -> (String, bool) {
        match code {
            "RepoNotFound" => (self.repo_name(), true),
            "RevisionNotFound" => (format!("Revision {} of {}", printable(self.revision), self.repo_name()), true),
            _ => (self.name(), self.path.is_none()),
        }
    }
}

/// `endpoint` with more path segments, each encoded as one.
fn extend<'a>(endpoint: &Url, segments: impl Iterator<Item = &'a str>) -> Url {
    let mut url = endpoint.clone();
    url.set_query(None);
    url.set_fragment(None);
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_every_part_in_its_place() {
        let repo = HubRepo { kind: HubKind::Dataset, id: "acme/images".to_owned() };
        let path: RelPath = "a b/#1?[x]%.bin".parse().unwrap();
        let asked = Asked { repo: &repo, revision: "refs/pr/1", path: Some(&path) };
        let endpoint: Url = "https://mirror.lab/hf/".parse().unwrap();
        assert_eq!(
            asked.api(&endpoint, "tree").as_str(),
            "https://mirror.lab/hf/api/datasets/acme/images/tree/refs%2Fpr%2F1"
        );
        assert_eq!(
            asked.resolve(&endpoint).as_str(),
            "https://mirror.lab/hf/datasets/acme/images/resolve/refs%2Fpr%2F1/a%20b/%231%3F[x]%25.bin"
        );
        assert_eq!(asked.name(), "hf:datasets/acme/images@refs%2Fpr%2F1/a b/#1?[x]%.bin");
        assert_eq!(
            asked.page(&"https://huggingface.co".parse().unwrap()),
            "https://huggingface.co/datasets/acme/images"
        );
    }
}
