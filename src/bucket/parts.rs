//! Large objects: uploads in parts, that can be gone on with after an interruption.

use bytes::Bytes;
use object_store::PutMultipartOptions;
use object_store::multipart::{MultipartStore as _, PartId};
use reqwest::{Method, StatusCode};

use super::{Bucket, BucketError, Key, told};
use crate::digest::Sha256;

/// The shortest length of a part. Servers take no less than 5 MiB.
pub const PART: u64 = 8 << 20;
/// Servers take no more parts than this.
pub const MOST_PARTS: u64 = 10_000;
/// Contents up to this length are put in one request.
pub const LONGEST_IN_ONE: u64 = 2 * PART;

/// The length of all parts but the last for a content of `size` bytes: whole MiB, as few as the number of parts allows.
pub fn part_len(size: u64) -> u64 {
    size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20).max(PART)
}

/// An upload that was begun: nothing is visible of it until it is completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// What it will be.
    pub key: Key,
    /// The server's name for it.
    pub id: String,
}

impl Bucket {
    /// Begins an upload.
    pub async fn begin(&self, key: &Key, sha256: Sha256) -> Result<Upload, BucketError> {
        let options = PutMultipartOptions { attributes: told(sha256), ..PutMultipartOptions::default() };
        let begun = self.store()?.create_multipart_opts(&self.at(key), options).await;
        let id = begun.map_err(|error| self.explain(&error))?;
        Ok(Upload { key: key.clone(), id })
    }

    /// Sends the part with this number, from 0; answers the server's name for it.
    pub async fn part(&self, upload: &Upload, number: usize, content: Bytes) -> Result<String, BucketError> {
        let sent = self.store()?.put_part(&self.at(&upload.key), &upload.id, number, content.into()).await;
        sent.map(|part| part.content_id).map_err(|error| self.explain(&error))
    }

    /// Whether the server still has parts of an upload; `true` also where it does not say.
    ///
    /// A server that does not know the upload may answer a part before it has read it, and the connection then breaks
    /// before the answer is seen. So this asks without a body, by listing no more than one part.
    pub async fn has_parts(&self, upload: &Upload) -> Result<bool, BucketError> {
        let id: String = url::form_urlencoded::byte_serialize(upload.id.as_bytes()).collect();
        let query = format!("?max-parts=1&uploadId={id}");
        let (url, headers) = self.signed_with_query(Method::GET, &upload.key, &query)?;
        let Ok(answer) = self.client.get(url).headers(headers).send().await else { return Ok(true) };
        match answer.status() {
            // Some say that an upload which they do not know is forbidden.
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => Ok(false),
            StatusCode::OK => Ok(answer.text().await.map_or(true, |text| text.contains("<PartNumber>"))),
            _ => Ok(true),
        }
    }

    /// Makes the object visible: `parts` are the server's names for all of its parts, in order.
    pub async fn complete(&self, upload: &Upload, parts: Vec<String>) -> Result<(), BucketError> {
        let parts = parts.into_iter().map(|content_id| PartId { content_id }).collect();
        let done = self.store()?.complete_multipart(&self.at(&upload.key), &upload.id, parts).await;
        done.map(drop).map_err(|error| self.explain(&error))
    }

    /// Has the server forget the parts that it has of an upload.
    pub async fn abort(&self, upload: &Upload) -> Result<(), BucketError> {
        let gone = self.store()?.abort_multipart(&self.at(&upload.key), &upload.id).await;
        match gone.map_err(|error| self.explain(&error)) {
            Ok(()) | Err(BucketError::NoSuchUpload { .. } | BucketError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_fits_into_the_parts_that_servers_take() {
        for size in [1, PART, PART * MOST_PARTS, PART * MOST_PARTS + 1, 5 << 40] {
            let len = part_len(size);
            assert!(len >= PART && len.is_multiple_of(1 << 20) && size.div_ceil(len) <= MOST_PARTS, "{size}: {len}");
        }
    }
}
