//! SHA256SUMS, as coreutils and rclone read it.

use std::os::unix::ffi::OsStrExt;

use crate::export::Entry;
use crate::report::export::Naming;

/// One line for each file. A name with a backslash or a line break is escaped as coreutils does it.
pub fn sums(entries: &[Entry], naming: Naming) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let name = naming.name(entry);
        let name = name.as_os_str().as_bytes();
        let escaped = escaped(name);
        if escaped != name {
            out.push(b'\\');
        }
        out.extend_from_slice(format!("{}  ", entry.sha256).as_bytes());
        out.extend_from_slice(&escaped);
        out.push(b'\n');
    }
    out
}

fn escaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            byte => out.push(*byte),
        }
    }
    out
}
