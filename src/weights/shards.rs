//! Shard indexes: `model.safetensors.index.json` and its kin, which say in which file each tensor lies.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};

use serde::Deserialize;

use crate::relpath::RelPath;
use crate::weights::WeightsError;

/// The longest index that is read; those of the largest models have a few MiB.
pub const MAX_INDEX: u64 = 64 << 20;

/// What an index says.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardIndex {
    /// The file of each tensor, relative to the folder of the index.
    pub tensors: BTreeMap<String, RelPath>,
    /// Sum of the tensors' bytes, where the index tells it.
    pub total_size: Option<u64>,
}

#[derive(Deserialize)]
struct RawIndex {
    #[serde(default)]
    metadata: BTreeMap<String, serde_json::Value>,
    weight_map: BTreeMap<String, RelPath>,
}

/// Whether a file of this name is a shard index.
pub fn is_index_name(name: &str) -> bool {
    name.ends_with(".safetensors.index.json") || name.ends_with(".bin.index.json")
}

/// Reads an index of `len` bytes. Names that lead out of the index's folder are refused.
pub fn read_index(file: &mut (impl Read + Seek), len: u64) -> Result<ShardIndex, WeightsError> {
    if len > MAX_INDEX {
        return Err(WeightsError::malformed(format!("a shard index of {len} bytes, {MAX_INDEX} are allowed")));
    }
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.by_ref().take(len).read_to_end(&mut text))
        .map_err(WeightsError::Io)?;
    let raw: RawIndex = serde_json::from_slice(&text).map_err(|error| WeightsError::malformed(error.to_string()))?;
    // Some writers print the sum as a floating-point number.
    let total_size = raw.metadata.get("total_size").and_then(|size| {
        size.as_u64().or_else(|| size.as_f64().filter(|size| (0.0..9e15).contains(size)).map(|size| size as u64))
    });
    Ok(ShardIndex { tensors: raw.weight_map, total_size })
}

impl ShardIndex {
    /// The files that the index needs, as paths beside `index`.
    pub fn shards(&self, index: &RelPath) -> BTreeSet<RelPath> {
        let folder = index.parent();
        self.tensors
            .values()
            .map(|shard| folder.as_ref().map_or_else(|| shard.clone(), |folder| folder.join(shard)))
            .collect()
    }

    /// The files that the index needs and `present` does not have.
    pub fn missing(&self, index: &RelPath, present: &BTreeSet<RelPath>) -> Vec<RelPath> {
        self.shards(index).into_iter().filter(|shard| !present.contains(shard)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn read(text: &str) -> Result<ShardIndex, WeightsError> {
        read_index(&mut Cursor::new(text), text.len() as u64)
    }

    #[test]
    fn missing_shards_are_named_beside_their_index() {
        let index = read(
            r#"{"metadata":{"total_size":12.0},"weight_map":{
                "a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors","c":"model-00001-of-00002.safetensors"}}"#,
        )
        .unwrap();
        assert_eq!(index.total_size, Some(12));
        let place: RelPath = "transformer/model.safetensors.index.json".parse().unwrap();
        let present = ["transformer/model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let present = present.iter().map(|path| path.parse().unwrap()).collect();
        let missing = index.missing(&place, &present);
        assert_eq!(missing, ["transformer/model-00002-of-00002.safetensors".parse().unwrap()]);
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        assert!(read(r#"{"weight_map":{"a":"../../etc/passwd"}}"#).is_err());
        assert!(read(r#"{"weight_map":{"a":"/etc/passwd"}}"#).is_err());
        assert!(read(r#"{"weight_map":["a"]}"#).is_err());
        assert!(read(r#"{"weight_map":{"a":"x.saf"#).is_err());
    }
}
