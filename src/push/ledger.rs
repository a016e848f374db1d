//! What was sent of an unfinished upload: lines of JSON in a file of this machine.
//!
//! The first line says what is uploaded and what the server calls it; each further line one part that has
//! arrived. A torn line is no line: its part is sent again.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use url::Url;

use super::Parcel;
use crate::bucket::{Bucket, Upload, part_len};
use crate::digest::{Blake3, Sha256};
use crate::fsio::{self, WriteOptions};

const VERSION: u32 = 1;
const ENDING: &str = "upload";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Heading {
    version: u32,
    bucket: Url,
    key: String,
    size: u64,
    part_len: u64,
    upload: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Arrived {
    part: usize,
    name: String,
    blake3: Blake3,
}

/// One part that the server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// The server's name for it.
    pub(super) name: String,
    /// What was sent.
    pub(super) blake3: Blake3,
}

/// The ledger of one upload.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    /// The upload.
    pub(super) upload: Upload,
    /// The parts that have arrived, by number.
    pub(super) parts: Vec<Option<Part>>,
}

impl Ledger {
    /// The ledger that an earlier run left of this very upload.
    pub(super) fn find(folder: &Path, parcel: &Parcel, bucket: &Bucket) -> Option<Self> {
        let path = path_of(folder, parcel, bucket.address());
        let text = fs_err::read_to_string(&path).ok()?;
        let mut lines = text.lines();
        let heading: Heading = serde_json::from_str(lines.next()?).ok()?;
        let expected = heading_of(parcel, bucket.address(), heading.upload.clone());
        if heading != expected {
            return None;
        }
        let mut parts = vec![None; count(parcel)];
        for arrived in lines.filter_map(|line| serde_json::from_str::<Arrived>(line).ok()) {
            if let Some(part) = parts.get_mut(arrived.part) {
                *part = Some(Part { name: arrived.name, blake3: arrived.blake3 });
            }
        }
        Some(Self { path, upload: Upload { key: parcel.key.clone(), id: heading.upload }, parts })
    }

    /// Begins one, in the place of any that is there.
    pub(super) fn begin(folder: &Path, parcel: &Parcel, bucket: &Bucket, upload: Upload) -> io::Result<Self> {
        let path = path_of(folder, parcel, bucket.address());
        let heading = serde_json::to_string(&heading_of(parcel, bucket.address(), upload.id.clone()))?;
        fsio::write_atomic(&path, format!("{heading}\n").as_bytes(), &WriteOptions::default())?;
        Ok(Self { path, upload, parts: vec![None; count(parcel)] })
    }

    /// Notes that a part has arrived.
    pub(super) fn note(&mut self, number: usize, part: Part) -> io::Result<()> {
        let arrived = Arrived { part: number, name: part.name.clone(), blake3: part.blake3 };
        fsio::append_line(&self.path, &serde_json::to_string(&arrived)?)?;
        self.parts[number] = Some(part);
        Ok(())
    }

    /// The upload is over, for better or worse.
    pub(super) fn close(self) -> io::Result<()> {
        fsio::remove_file(&self.path)
    }
}

/// All uploads that were begun here into the bucket at `address`, with the files that note them.
pub(super) fn all(folder: &Path, address: &Url) -> Vec<(PathBuf, Upload)> {
    let Ok(entries) = fs_err::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let ledgers = paths.filter(|path| path.extension().is_some_and(|ending| ending == ENDING));
    let upload = |path: PathBuf| {
        let text = fs_err::read_to_string(&path).ok()?;
        let heading: Heading = serde_json::from_str(text.lines().next()?).ok()?;
        let key = heading.key.parse().ok().filter(|_| heading.bucket == *address)?;
        Some((path, Upload { key, id: heading.upload }))
    };
    ledgers.filter_map(upload).collect()
}

/// How many parts a content has.
pub(super) fn count(parcel: &Parcel) -> usize {
    parcel.bytes.div_ceil(part_len(parcel.bytes)) as usize
}

fn heading_of(parcel: &Parcel, bucket: &Url, upload: String) -> Heading {
    let (key, part_len) = (parcel.key.to_string(), part_len(parcel.bytes));
    Heading { version: VERSION, bucket: bucket.clone(), key, size: parcel.bytes, part_len, upload }
}

fn path_of(folder: &Path, parcel: &Parcel, bucket: &Url) -> PathBuf {
    let name = Sha256::of(format!("{bucket} {}", parcel.key).as_bytes());
    folder.join(format!("{name}.{ENDING}"))
}
