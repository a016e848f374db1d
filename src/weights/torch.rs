//! What `torch.save` writes: since 2020 a zip archive of one pickle and all storages, before that five pickles and
//! then the storages. The pickles are followed and never run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use crate::weights::WeightsError;
use crate::weights::hidden;
use crate::weights::pickle::{Built, Followed, Input, Storage, follow};
use crate::weights::zip::{Member, read_zip, shown};

/// Archives within archives are followed this far.
const MAX_DEPTH: u32 = 4;
/// Pickles that follow each other in one file.
const MAX_PICKLES: usize = 64;
/// The number that the older format begins with, as its first pickle writes it.
const LEGACY_MAGIC: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// What a file of torch holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The tensors, by the keys that lead to them, joined with dots; in the pickle's order.
    pub tensors: Vec<Tensor>,
    /// Whether it is of the format before zip archives.
    pub legacy: bool,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type as safetensors writes it.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// First byte of the file that belongs to it, and the first after its last.
    pub place: Range<u64>,
}

/// What an archive turns out to be.
pub(crate) enum Archive {
    Torch(Header),
    Other,
}

/// Whether the first bytes of a file can be the beginning of a pickle of protocol 2 or later.
pub(crate) fn begins_like_pickle(start: &[u8]) -> bool {
    matches!(start, [0x80, 2..=5, ..])
}

/// Follows every pickle of an archive and compares its tensors with their storages; those are not read.
pub(crate) fn read_archive(file: &mut (impl Read + Seek), len: u64) -> Result<Archive, WeightsError> {
    read_archive_at(file, 0, len, 0)
}

/// Follows an archive within another one, at `place` of `file`; it is called `name` there.
///
/// One that lies too deep is unsafe: what is not looked at is not harmless.
pub(crate) fn read_inner_archive<F: Read + Seek>(
    file: &mut F,
    place: &Range<u64>,
    name: &str,
    depth: u32,
) -> Result<(), WeightsError> {
    if depth == MAX_DEPTH {
        let finding = "archives are nested too deeply to be followed".to_owned();
        return Err(WeightsError::UnsafePickle { pickle: shown(name), findings: vec![finding] });
    }
    read_archive_at(file, place.start, place.end - place.start, depth + 1).map(drop)
}

/// `file` is borrowed as it is, so that archives within archives need no type of their own.
fn read_archive_at<F: Read + Seek>(file: &mut F, start: u64, len: u64, depth: u32) -> Result<Archive, WeightsError> {
    let members = read_zip(file, start, len)?;
    let Some(main) = members.iter().find(|member| within(&member.name) == "data.pkl") else {
        hidden::check_zip(file, start, &members, depth)?;
        return Ok(Archive::Other);
    };
    let followed = follow_member(file, start, main)?;
    let storages: BTreeMap<String, Storage> =
        followed.storages().into_iter().map(|storage| (format!("data/{}", storage.key), storage)).collect();
    let mut places = BTreeMap::new();
    for member in members.iter().filter(|member| member.name != main.name) {
        match storages.get(within(&member.name)) {
            Some(storage) => {
                places.insert(storage.key.clone(), storage_of(file, start, member, storage)?).map_or((), drop)
            }
            None => check_other(file, start, member, depth)?,
        }
    }
    if let Some(missing) = storages.values().find(|storage| !places.contains_key(&storage.key)) {
        return Err(WeightsError::malformed(format!("the archive lacks its storage {:?}", shown(&missing.key))));
    }
    Ok(Archive::Torch(Header { tensors: placed(followed.tensors(), &places)?, legacy: false }))
}

/// The name without the archive's own folder.
fn within(name: &str) -> &str {
    name.split_once('/').map_or(name, |(_, within)| within)
}

fn storage_of<F: Read + Seek>(
    file: &mut F,
    start: u64,
    member: &Member,
    storage: &Storage,
) -> Result<Range<u64>, WeightsError> {
    let wrong = |reason: String| Err(WeightsError::tensor(&format!("storage {}", storage.key), reason));
    if member.method != 0 || member.encrypted {
        return wrong("it is compressed or encrypted, which torch never writes".to_owned());
    }
    if member.size < storage.bytes || member.stored != member.size {
        return wrong(format!("it has {} bytes, the pickle says {}", member.size, storage.bytes));
    }
    member.place(file, start)
}

/// Follows a pickle in an archive; its checksum must be right.
fn follow_member<F: Read + Seek>(file: &mut F, start: u64, member: &Member) -> Result<Followed, WeightsError> {
    if member.method != 0 || member.encrypted {
        let finding = "it is compressed or encrypted, so that its instructions cannot be read".to_owned();
        return Err(unsafe_pickle(&member.name, [finding]));
    }
    let place = member.place(file, start)?;
    if crc32(file, &place)? != member.crc {
        return Err(WeightsError::malformed(format!(
            "member {:?} is damaged: its checksum is wrong",
            shown(&member.name)
        )));
    }
    let followed = follow(&mut Input::new(&mut *file, place.start, place.end)?)?;
    harmless(&member.name, followed)
}

fn harmless(name: &str, followed: Followed) -> Result<Followed, WeightsError> {
    if followed.findings.is_empty() { Ok(followed) } else { Err(unsafe_pickle(name, followed.findings)) }
}

fn unsafe_pickle(name: &str, findings: impl IntoIterator<Item = String>) -> WeightsError {
    WeightsError::UnsafePickle { pickle: shown(name), findings: findings.into_iter().collect() }
}

/// Looks at a member that the pickle does not mention: other pickles and archives may hide in it.
fn check_other<F: Read + Seek>(file: &mut F, start: u64, member: &Member, depth: u32) -> Result<(), WeightsError> {
    let is_named_so = member.name.to_ascii_lowercase().ends_with(".pkl");
    if member.method != 0 || member.encrypted {
        return if is_named_so { follow_member(file, start, member).map(drop) } else { Ok(()) };
    }
    let place = member.place(file, start)?;
    let mut first = Vec::new();
    file.seek(SeekFrom::Start(place.start))
        .and_then(|_| file.by_ref().take(4.min(member.stored)).read_to_end(&mut first))
        .map_err(WeightsError::Io)?;
    if first.starts_with(b"PK\x03\x04") {
        return read_inner_archive(file, &place, &member.name, depth);
    }
    if is_named_so || begins_like_pickle(&first) { follow_member(file, start, member).map(drop) } else { Ok(()) }
}

/// Joins the tensors with the places of their storages.
fn placed(built: Vec<Built>, places: &BTreeMap<String, Range<u64>>) -> Result<Vec<Tensor>, WeightsError> {
    let place = |tensor: Built| {
        let end = tensor.offset.saturating_add(tensor.span);
        if end > tensor.storage.bytes {
            let reason = format!("it ends at byte {end} of a storage of {}", tensor.storage.bytes);
            return Err(WeightsError::tensor(&tensor.name, reason));
        }
        let start = places.get(&tensor.storage.key).map_or(0, |place| place.start);
        let place = start + tensor.offset..start + end;
        Ok(Tensor { name: tensor.name, dtype: tensor.dtype, shape: tensor.shape, place })
    };
    built.into_iter().map(place).collect()
}

/// Follows the pickles at the beginning of a file of `len` bytes, and compares what torch put after them.
///
/// `None` for pickles that torch did not write: they are followed too, and harmless.
pub(crate) fn read_pickles(file: &mut (impl Read + Seek), len: u64) -> Result<Option<Header>, WeightsError> {
    let mut first = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.by_ref().take(32).read_to_end(&mut first))
        .map_err(WeightsError::Io)?;
    let is_torch = first.windows(LEGACY_MAGIC.len()).any(|window| window == LEGACY_MAGIC);
    let mut input = Input::new(&mut *file, 0, len)?;
    let mut pickles = Vec::new();
    while pickles.len() < if is_torch { 5 } else { MAX_PICKLES } {
        let from = input.at();
        pickles.push(harmless(&format!("the pickle at byte {from}"), follow(&mut input)?)?);
        // What follows a single pickle is read by nobody, unless it is another one.
        if !is_torch && (input.left() == 0 || input.byte()? != 0x80) {
            return Ok(None);
        }
        if !is_torch {
            input.back()?;
        }
    }
    let end = input.at();
    drop(input);
    match pickles.as_slice() {
        [_, _, _, object, keys] if is_torch => legacy(file, object, keys, end..len).map(Some),
        _ => Ok(None),
    }
}

/// What a file imports that is forbidden, if it can be followed as a pickle until there.
///
/// With `called`, only where the import is called as well.
pub(crate) fn unsafe_imports(
    file: &mut (impl Read + Seek),
    len: u64,
    called: bool,
) -> Result<Option<WeightsError>, WeightsError> {
    let followed = follow(&mut Input::new(file, 0, len)?)?;
    // Noise has instructions too, but no names in them. Prose has names, and calls nothing.
    let is_one = if called { followed.calls_forbidden } else { followed.has_forbidden_import };
    Ok(is_one.then(|| unsafe_pickle("the pickle at byte 0", followed.findings)))
}

fn legacy<F: Read + Seek>(
    file: &mut F,
    object: &Followed,
    keys: &Followed,
    rest: Range<u64>,
) -> Result<Header, WeightsError> {
    let keys = keys.texts().ok_or_else(|| WeightsError::malformed("the list of storages is none"))?;
    let storages: BTreeMap<String, Storage> =
        object.storages().into_iter().map(|storage| (storage.key.clone(), storage)).collect();
    let mut places = BTreeMap::new();
    let mut at = rest.start;
    for key in &keys {
        let storage = storages
            .get(key)
            .ok_or_else(|| WeightsError::malformed(format!("nothing is known of its storage {:?}", shown(key))))?;
        let begin = at.saturating_add(8);
        let end = begin.saturating_add(storage.bytes);
        if end > rest.end {
            let what = format!("storage {:?}", shown(key));
            return Err(WeightsError::Truncated { what, needed: end, len: rest.end });
        }
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut count)).map_err(WeightsError::Io)?;
        if u64::from_le_bytes(count) != storage.count {
            let reason = format!("it has {} elements, the pickle says {}", u64::from_le_bytes(count), storage.count);
            return Err(WeightsError::tensor(&format!("storage {key}"), reason));
        }
        places.insert(key.clone(), begin..end);
        at = end;
    }
    if at < rest.end {
        return Err(WeightsError::Surplus { expected: at, len: rest.end });
    }
    let named: BTreeSet<&String> = keys.iter().collect();
    if let Some(missing) = storages.keys().find(|key| !named.contains(key)) {
        return Err(WeightsError::malformed(format!("the file lacks its storage {:?}", shown(missing))));
    }
    Ok(Header { tensors: placed(object.tensors(), &places)?, legacy: true })
}

/// The checksum that zip keeps of every member.
fn crc32<F: Read + Seek>(file: &mut F, place: &Range<u64>) -> Result<u64, WeightsError> {
    let mut crc = u32::MAX;
    let mut buffer = vec![0; 1 << 16];
    let mut left = place.end - place.start;
    file.seek(SeekFrom::Start(place.start)).map_err(WeightsError::Io)?;
    while left > 0 {
        let part = left.min(buffer.len() as u64) as usize;
        file.read_exact(&mut buffer[..part]).map_err(WeightsError::Io)?;
        for byte in &buffer[..part] {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            }
        }
        left -= part as u64;
    }
    Ok(u64::from(!crc))
}
