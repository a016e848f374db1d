//! CycloneDX 1.6 as a bill of materials of machine-learning models (ML-BOM).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::artifact::{HubKind, Reference};
use crate::digest::Sha256;
use crate::export::Entry;
use crate::report::export::Naming;
use crate::report::phrases;

/// The licences of SPDX's list that manifests name so; others are given by name.
const SPDX: [&str; 12] = [
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC-BY-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-NC-SA-4.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "GPL-3.0-only",
    "ISC",
    "MIT",
    "MPL-2.0",
];

/// What a bill says of one artifact beside its files.
#[derive(Debug, Clone)]
pub struct Described<'a> {
    /// Name.
    pub name: &'a str,
    /// What people call it.
    pub title: Option<&'a str>,
    /// What it is used for.
    pub purpose: Option<&'a str>,
    /// Licence, as an SPDX id or the maker's own name.
    pub license: Option<&'a str>,
    /// Exact revision.
    pub revision: Option<&'a str>,
    /// Where it comes from.
    pub source: &'a Reference,
    /// Store.
    pub store: &'a str,
    /// Whether no other source has it.
    pub irreplaceable: bool,
}

/// The document: one component for each artifact, which contains its files.
///
/// The same state of the same machine gives the same serial number.
pub fn bom(machine: &str, artifacts: &[Described<'_>], entries: &[Entry], at: i64) -> String {
    let mut files: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    entries.iter().for_each(|entry| files.entry(&entry.artifact).or_default().push(entry));
    let components: Vec<Value> = artifacts
        .iter()
        .map(|artifact| component(artifact, files.get(artifact.name).map_or(&[][..], Vec::as_slice)))
        .collect();
    let serial = serial(&serde_json::to_vec(&components).unwrap_or_default());
    let document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{serial}"),
        "version": 1,
        "metadata": {
            "timestamp": phrases::machine_moment(at),
            "tools": {"components": [{"type": "application", "name": "larder", "version": env!("CARGO_PKG_VERSION")}]},
            "component": {"type": "platform", "bom-ref": "machine", "name": machine},
        },
        "components": components,
    });
    format!("{document:#}\n")
}

fn component(artifact: &Described<'_>, files: &[&Entry]) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| drop(out.insert(key.to_owned(), value));
    put("type", "machine-learning-model".into());
    put("bom-ref", format!("artifact:{}", artifact.name).into());
    put("name", artifact.name.into());
    if let Some(revision) = artifact.revision {
        put("version", revision.into());
    }
    let words: Vec<&str> = artifact.title.into_iter().chain(artifact.purpose).collect();
    if !words.is_empty() {
        put("description", words.join(". ").into());
    }
    if let Some(license) = artifact.license {
        let key = if SPDX.contains(&license) { "id" } else { "name" };
        put("licenses", json!([{"license": {key: license}}]));
    }
    if let Some(purl) = purl(artifact) {
        put("purl", purl.into());
    }
    if let Some(url) = page(artifact.source) {
        put("externalReferences", json!([{"type": "distribution", "url": url}]));
    }
    let irreplaceable = artifact.irreplaceable.to_string();
    put(
        "properties",
        json!([
            {"name": "larder:source", "value": artifact.source.to_string()},
            {"name": "larder:store", "value": artifact.store},
            {"name": "larder:irreplaceable", "value": irreplaceable},
        ]),
    );
    if !files.is_empty() {
        put("components", files.iter().map(|entry| file(entry)).collect());
    }
    Value::Object(out)
}

fn file(entry: &Entry) -> Value {
    let mut hashes = vec![json!({"alg": "SHA-256", "content": entry.sha256.to_string()})];
    hashes.extend(entry.md5.map(|md5| json!({"alg": "MD5", "content": md5.to_string()})));
    let name = Naming::ByStore.name(entry).to_string_lossy().into_owned();
    let mut out = json!({
        "type": "file",
        "bom-ref": format!("file:{name}"),
        "name": name,
        "hashes": hashes,
    });
    if let Some(size) = entry.size {
        out["properties"] = json!([{"name": "larder:size", "value": size.to_string()}]);
    }
    out
}

/// The package address that tools know hub repositories by.
fn purl(artifact: &Described<'_>) -> Option<String> {
    match artifact.source {
        Reference::Hub { repo, path: None, .. } if repo.kind == HubKind::Model => {
            let revision = artifact.revision.map(|revision| format!("@{revision}")).unwrap_or_default();
            Some(format!("pkg:huggingface/{}{revision}", repo.id))
        }
        _ => None,
    }
}

fn page(source: &Reference) -> Option<String> {
    match source {
        Reference::Hub { repo, .. } => Some(format!("https://huggingface.co/{repo}")),
        Reference::Ollama(name) => Some(format!("https://{}/v2/{}/{}", name.host, name.namespace, name.model)),
        Reference::Url(url) => Some(url.to_string()),
        _ => None,
    }
}

/// A UUID of version 8 (RFC 9562), made of what the bill says.
fn serial(content: &[u8]) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Sha256::of(content).as_bytes()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
