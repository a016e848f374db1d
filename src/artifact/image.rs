//! Ollama image manifests: which blobs an image consists of.

use serde::Deserialize;

use super::File;
use crate::digest::{Digests, Sha256};

/// Manifests longer than this are refused: the longest known ones, of tensor models, stay below 1 MiB.
pub const MANIFEST_LIMIT: u64 = 4 << 20;

/// The media type of the manifests that Ollama reads.
pub const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";

const LAYER_TYPE: &str = "application/vnd.ollama.image.";

/// Bytes that are not a manifest Ollama could use, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("It is not an Ollama manifest: {reason}")]
pub struct ParseManifestError {
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    config: Option<Layer>,
    layers: Option<Vec<Layer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
}

/// Reads the blobs that a manifest names: the config first, then the layers in their order.
///
/// Every file has path, size, sha256 and role. A blob that is named twice is listed once. Refused are
/// manifests of another kind or schema, digests other than lower-case sha256, one digest with two
/// sizes, totals beyond 64 bits, and anything longer than [`MANIFEST_LIMIT`].
pub fn parse_manifest(bytes: &[u8]) -> Result<Vec<File>, ParseManifestError> {
    if bytes.len() as u64 > MANIFEST_LIMIT {
        return Err(refused(format!("{} bytes are more than the limit of {MANIFEST_LIMIT}", bytes.len())));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| refused(format!("it is not UTF-8: {error}")))?;
    let manifest: Manifest = serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
    check_kind(&manifest)?;
    let config = manifest.config.ok_or_else(|| refused("it names no config".to_owned()))?;
    let layers = manifest.layers.ok_or_else(|| refused("it has no list of layers".to_owned()))?;
    let mut files = vec![file_of(&config, "config".to_owned())?];
    for layer in &layers {
        add(&mut files, file_of(layer, role_of(&layer.media_type)?)?)?;
    }
    let total = files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size.unwrap_or(0)));
    total.map(|_| files).ok_or_else(|| refused("its sizes add up to more than 64 bits hold".to_owned()))
}

/// The name under which Ollama keeps a blob: `sha256-` and the digits.
pub fn blob_name(digest: &Sha256) -> String {
    format!("sha256-{digest}")
}

fn refused(reason: String) -> ParseManifestError {
    ParseManifestError { reason }
}

fn check_kind(manifest: &Manifest) -> Result<(), ParseManifestError> {
    if manifest.schema_version != 2 {
        return Err(refused(format!("its schemaVersion is {}, 2 is needed", manifest.schema_version)));
    }
    match manifest.media_type.as_deref() {
        None | Some(MANIFEST_TYPE) => Ok(()),
        Some(other) => Err(refused(format!("its mediaType is {:?}, {MANIFEST_TYPE} is needed", shortened(other)))),
    }
}

fn file_of(layer: &Layer, role: String) -> Result<File, ParseManifestError> {
    let digest = layer.digest.strip_prefix("sha256:").filter(|digits| !digits.contains(|c: char| c.is_uppercase()));
    let wrong = || refused(format!("{:?} is not a digest such as sha256:0123…", shortened(&layer.digest)));
    let digest: Sha256 = digest.ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
    let path = format!("blobs/{}", blob_name(&digest)).parse().map_err(|_| wrong())?;
    Ok(File { size: Some(layer.size), digests: Digests::sha256(digest), role: Some(role), ..File::named(path) })
}

fn role_of(media_type: &str) -> Result<String, ParseManifestError> {
    let role = media_type.strip_prefix(LAYER_TYPE).unwrap_or(media_type);
    let plain = !role.is_empty() && role.len() <= 200 && !role.contains(|c: char| c.is_control() || c.is_whitespace());
    plain.then(|| role.to_owned()).ok_or_else(|| refused(format!("{:?} is not a media type", shortened(media_type))))
}

fn add(files: &mut Vec<File>, file: File) -> Result<(), ParseManifestError> {
    match files.iter().find(|known| known.path == file.path) {
        None => files.push(file),
        Some(known) if known.size == file.size => {}
        Some(known) => {
            let (one, two) = (known.size.unwrap_or(0), file.size.unwrap_or(0));
            return Err(refused(format!("{} has {one} bytes in one place and {two} in another", file.path)));
        }
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const MODEL: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

    fn manifest(layers: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"sha256:{CONFIG}","size":3}},"layers":[{layers}]}}"#
        )
    }

    fn layer(kind: &str, digest: &str, size: &str) -> String {
        format!(
            r#"{{"mediaType":"application/vnd.ollama.image.{kind}","digest":"{digest}","size":{size},"from":"/x"}}"#
        )
    }

    #[test]
    fn config_and_layers_become_files_and_twins_become_one() {
        let model = layer("model", &format!("sha256:{MODEL}"), "7");
        let files = parse_manifest(manifest(&format!("{model},{model}")).as_bytes()).unwrap();
        let seen: Vec<_> =
            files.iter().map(|file| (file.path.as_str(), file.size, file.role.as_deref().unwrap())).collect();
        let (config, model) = (format!("blobs/sha256-{CONFIG}"), format!("blobs/sha256-{MODEL}"));
        assert_eq!(seen, [(config.as_str(), Some(3), "config"), (model.as_str(), Some(7), "model")]);
        assert_eq!(files[1].digests.sha256.unwrap().to_string(), MODEL);
    }

    #[test]
    fn each_mistake_is_named() {
        let good = format!("sha256:{MODEL}");
        let two_sizes = format!("{},{}", layer("model", &good, "7"), layer("model", &good, "8"));
        let too_much = layer("model", &good, &u64::MAX.to_string());
        for (text, reason) in [
            (String::new(), "EOF"),
            ("<html>".to_owned(), "expected value"),
            (r#"{"schemaVersion":1}"#.to_owned(), "schemaVersion is 1"),
            (r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json"}"#.to_owned(), "mediaType"),
            (r#"{"schemaVersion":2,"layers":[]}"#.to_owned(), "no config"),
            (manifest("").replace(r#","layers":[]"#, ""), "no list of layers"),
            (manifest(&layer("model", "sha256:../../etc", "7")), "not a digest"),
            (manifest(&layer("model", MODEL, "7")), "not a digest"),
            (manifest(&layer("model", &good.to_uppercase(), "7")), "not a digest"),
            (manifest(&layer("model", &good, "-7")), "invalid value"),
            (manifest(&layer("", &good, "7")).replace("application/vnd.ollama.image.", ""), "not a media type"),
            (manifest(&two_sizes), "7 bytes in one place and 8"),
            (manifest(&too_much), "more than 64 bits"),
            (format!("{} trailing", manifest("")), "trailing characters"),
        ] {
            let error = parse_manifest(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(parse_manifest(b"{\"schemaVersion\":2,\"x\":\"\xff\"}").unwrap_err().to_string().contains("UTF-8"));
        assert!(parse_manifest(&vec![b' '; (MANIFEST_LIMIT + 1) as usize]).unwrap_err().to_string().contains("limit"));
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_accepted_names_only_blobs(at in 0_usize..400, by in proptest::collection::vec(0_u8.., 0..8)) {
            let mut bytes = manifest(&layer("model", &format!("sha256:{MODEL}"), "7")).into_bytes();
            let at = at.min(bytes.len());
            let end = (at + by.len()).min(bytes.len());
            bytes.splice(at..end, by);
            for file in parse_manifest(&bytes).unwrap_or_default() {
                let digest = file.digests.sha256.unwrap();
                assert_eq!(file.path.as_str(), format!("blobs/sha256-{digest}"));
                assert!(file.size.is_some() && file.role.is_some());
            }
        }
    }
}
