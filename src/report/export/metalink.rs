//! Metalink 4 (RFC 5854): files with their digests and addresses, for aria2 and others.

use std::fmt::Write as _;

use crate::export::{Entry, LeftOut};
use crate::report::export::Naming;
use crate::report::phrases;

/// The document, and the files that it cannot name or that nobody hands out.
pub fn metalink(entries: &[Entry], naming: Naming, at: i64) -> (String, Vec<LeftOut>) {
    let mut left_out = Vec::new();
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<metalink xmlns=\"urn:ietf:params:xml:ns:metalink\">\n\
         <generator>larder/{}</generator>\n<published>{}</published>\n",
        env!("CARGO_PKG_VERSION"),
        phrases::machine_moment(at)
    );
    for entry in entries {
        match file(entry, naming) {
            Ok(text) => out.push_str(&text),
            Err(reason) => left_out.push(LeftOut {
                artifact: entry.artifact.clone(),
                path: entry.within.display().to_string(),
                reason: reason.to_owned(),
            }),
        }
    }
    out.push_str("</metalink>\n");
    (out, left_out)
}

fn file(entry: &Entry, naming: Naming) -> Result<String, &'static str> {
    let name = naming.name(entry);
    let name = name.to_str().filter(|name| !name.chars().any(char::is_control));
    let name = name.ok_or("XML cannot hold its name")?;
    if entry.addresses.is_empty() {
        return Err("nobody hands it out: name a machine that runs `larder serve` with --mirror");
    }
    let mut out = format!("<file name=\"{}\">\n", escaped(name));
    if let Some(size) = entry.size {
        let _ = writeln!(out, "<size>{size}</size>");
    }
    if let Some(md5) = &entry.md5 {
        let _ = writeln!(out, "<hash type=\"md5\">{md5}</hash>");
    }
    let _ = writeln!(out, "<hash type=\"sha-256\">{}</hash>", entry.sha256);
    if let Some(pieces) = &entry.pieces {
        let _ = writeln!(out, "<pieces length=\"{}\" type=\"sha-256\">", pieces.length);
        pieces.digests.iter().for_each(|digest| out.push_str(&format!("<hash>{digest}</hash>\n")));
        out.push_str("</pieces>\n");
    }
    for (index, address) in entry.addresses.iter().enumerate() {
        let _ = writeln!(out, "<url priority=\"{}\">{}</url>", index + 1, escaped(address.as_str()));
    }
    out.push_str("</file>\n");
    Ok(out)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
