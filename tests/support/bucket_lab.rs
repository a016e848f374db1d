//! Machines of one lab that share a bucket: what they want is the same, what they have is not.

use std::process::Command;

use larder::digest::Sha256;

use crate::program::{self, Lab, Said};
use crate::s3s::{KEY, S3, SECRET};

/// The folder of the bucket that is larder's.
pub(crate) const FOLDER: &str = "lab";

/// A machine of this name that wants `manifest` and knows `buckets` of `s3`; nothing else is asked.
pub(crate) fn machine(name: &str, s3: &S3, buckets: &[&str], manifest: &str) -> Lab {
    let lab = Lab::new("", manifest);
    write_inventory(&lab, name, s3, buckets, "");
    lab
}

/// Writes the inventory anew; `more` goes to the keys of every bucket.
pub(crate) fn write_inventory(lab: &Lab, name: &str, s3: &S3, buckets: &[&str], more: &str) {
    let bucket = |bucket: &&str| {
        format!("{{ name = \"{bucket}\", url = \"s3://{bucket}/{FOLDER}\", endpoint = \"{}\"{more} }}", s3.endpoint)
    };
    let buckets: Vec<String> = buckets.iter().map(bucket).collect();
    let stores = "plain = { layout = \"folder\", path = \"~/plain\" }";
    lab.write(
        "inventory.toml",
        format!(
            "manifests = [\"manifests/*.toml\"]\nmachine = \"{name}\"\n[stores]\n{stores}\n[machines]\n{name} = {{}}\n\
             [sources]\norder = [\"bucket\"]\nconnections = 2\nretries = 1\nretry-pause = \"1 ms\"\nbuckets = [{}]\n",
            buckets.join(", ")
        ),
    );
}

/// One artifact of plain files, from `source`.
pub(crate) fn artifact(name: &str, source: &str, more: &str, files: &[(&str, Vec<u8>)]) -> String {
    let head = format!("[[artifact]]\nname = \"{name}\"\nstore = \"plain\"\nsource = \"{source}\"\n{more}");
    let file = |(path, bytes): &(&str, Vec<u8>)| {
        format!("[[artifact.file]]\npath = \"{path}\"\nsize = {}\nsha256 = \"{}\"\n", bytes.len(), Sha256::of(bytes))
    };
    format!("{head}{}", files.iter().map(file).collect::<String>())
}

/// Puts the files where the plain store has them.
pub(crate) fn fill(lab: &Lab, files: &[(&str, Vec<u8>)]) {
    files.iter().for_each(|(path, bytes)| lab.write(&format!("home/plain/{path}"), bytes));
}

/// Whether the plain store has all of them, byte by byte.
pub(crate) fn has_all(lab: &Lab, files: &[(&str, Vec<u8>)]) -> bool {
    files
        .iter()
        .all(|(path, bytes)| std::fs::read(lab.path(&format!("home/plain/{path}"))).is_ok_and(|it| it == *bytes))
}

/// larder with the right keys in its environment.
pub(crate) fn command(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = lab.command(arguments);
    command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
    command
}

/// Runs it to its end.
pub(crate) fn run(lab: &Lab, arguments: &[&str]) -> Said {
    program::said(&mut command(lab, arguments), &lab.path(""))
}

/// The key of a content.
pub(crate) fn blob(content: &[u8]) -> String {
    format!("{FOLDER}/blobs/sha256/{}", Sha256::of(content))
}

/// Bytes without pattern: compressible content hides damage.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next).take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    bytes
}
