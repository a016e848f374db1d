//! Where one image's manifest lies, and whether it is the wanted one.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::artifact::{MANIFEST_LIMIT, OLLAMA_HOST, OllamaManifest, OllamaName};
use crate::digest::Sha256;
use crate::fsio;
use crate::relpath::RelPath;
use crate::stores::Unpublished;

/// The host under which newer versions of Ollama file the default registry.
const NEW_HOST: &str = "ollama.com";

/// Where the manifest of one name lies.
pub(super) struct ManifestPath {
    /// The file that larder writes.
    pub(super) path: PathBuf,
    /// Its path within the store.
    relative: RelPath,
    root: PathBuf,
}

impl ManifestPath {
    /// `None` for names whose parts cannot be folder names.
    pub(super) fn of(root: &Path, name: &OllamaName) -> Option<Self> {
        let OllamaName { host, namespace, model, tag } = name;
        let relative: RelPath = format!("manifests/{host}/{namespace}/{model}/{tag}").parse().ok()?;
        (relative.parts().count() == 5).then(|| Self { path: relative.under(root), relative, root: root.to_owned() })
    }

    /// How people are told of it.
    pub(super) fn shown(&self) -> String {
        self.relative.to_string()
    }

    /// The bytes of the manifest, in this layout or the newer one; `None` where there is none.
    pub(super) fn read(&self) -> io::Result<Option<Vec<u8>>> {
        if let Some(bytes) = self.read_own()? {
            return Ok(Some(bytes));
        }
        let below = self.relative.as_str().trim_start_matches("manifests/");
        let newer = below.strip_prefix(OLLAMA_HOST).map(|rest| format!("{NEW_HOST}{rest}"));
        for name in [Some(below.to_owned()), newer].into_iter().flatten() {
            if let Some(bytes) = read_limited(&self.root.join("manifests-v2").join(name))? {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// The bytes of the manifest in the layout that larder writes.
    pub(super) fn read_own(&self) -> io::Result<Option<Vec<u8>>> {
        read_limited(&self.path)
    }

    /// Whether `bytes` are what `wanted` asks for; without a wish, any manifest will do.
    pub(super) fn compare(&self, bytes: &[u8], wanted: Option<&OllamaManifest>) -> Result<(), Unpublished> {
        let Some(wanted) = wanted else {
            return Ok(());
        };
        let actual = Sha256::of(bytes);
        let same = match &wanted.bytes {
            Some(expected) => expected.as_bytes() == bytes,
            None => actual == wanted.digest,
        };
        if same {
            return Ok(());
        }
        let actual = if bytes.is_empty() { "empty".to_owned() } else { format!("sha256:{actual}") };
        Err(Unpublished::Different { what: self.shown(), actual, wanted: format!("sha256:{}", wanted.digest) })
    }

    /// Ollama ignores case when it looks names up, so two such manifests would hide each other.
    pub(super) fn is_ambiguous(&self, twin: &str) -> Unpublished {
        Unpublished::Different {
            what: "the name as Ollama compares it, without regard to case,".to_owned(),
            actual: format!("taken by {twin} (free it with `ollama rm`)"),
            wanted: self.shown(),
        }
    }
}

fn read_limited(path: &Path) -> io::Result<Option<Vec<u8>>> {
    if fsio::find(path)?.is_none() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    fs_err::File::open(path)?.take(MANIFEST_LIMIT + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The path of another manifest that differs from `place` in nothing but case.
pub(super) fn twin_in_other_case(place: &ManifestPath) -> io::Result<Option<String>> {
    let mut candidates = vec![String::new()];
    for part in place.relative.parts() {
        let mut next = Vec::new();
        for folder in &candidates {
            let names = names_like(&place.root.join(folder), part)?;
            next.extend(names.into_iter().map(|name| format!("{folder}/{name}").trim_start_matches('/').to_owned()));
        }
        candidates = next;
    }
    Ok(candidates.into_iter().find(|candidate| candidate != place.relative.as_str()))
}

fn names_like(folder: &Path, part: &str) -> io::Result<Vec<String>> {
    let entries = match fs_err::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if fsio::is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.eq_ignore_ascii_case(part) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
