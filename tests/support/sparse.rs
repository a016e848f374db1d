//! Weight files of full size that take no room: a real header, and a hole behind it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use serde_json::json;

/// Tensors by name, with their shapes.
pub(crate) type Tensors = BTreeMap<String, Vec<u64>>;

/// A list of `src/smoke/expected/`, read by other code than larder's own.
pub(crate) fn expected(name: &str) -> Tensors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/smoke/expected").join(format!("{name}.txt"));
    let text = fs_err::read_to_string(path).unwrap();
    let mut tensors = Tensors::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let pattern = words.next().unwrap().to_owned();
        let shape: Vec<u64> = words.map(|side| side.parse().unwrap()).collect();
        let mut names = vec![pattern];
        while names[0].contains('{') {
            names = names.iter().flat_map(|name| once(name)).collect();
        }
        tensors.extend(names.into_iter().map(|name| (name, shape.clone())));
    }
    tensors
}

/// Puts each number in the place of the first braces.
fn once(name: &str) -> Vec<String> {
    let (open, close) = (name.find('{').unwrap(), name.find('}').unwrap());
    let mut names = Vec::new();
    for range in name[open + 1..close].split(',') {
        let ends: Vec<u64> = range.split('-').map(|end| end.parse().unwrap()).collect();
        for number in ends[0]..=*ends.last().unwrap() {
            names.push(format!("{}{number}{}", &name[..open], &name[close + 1..]));
        }
    }
    names
}

/// The same tensors with `prefix` before each name.
pub(crate) fn prefixed(prefix: &str, tensors: Tensors) -> Tensors {
    tensors.into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect()
}

/// Tensors by name, with their element types and shapes.
pub(crate) type Typed = BTreeMap<String, (&'static str, Vec<u64>)>;

/// A file of ComfyUI whose matrices have 8 bits: each with a scale of this name, all else as it was.
pub(crate) fn scaled(tensors: &Tensors, scale: &str) -> Typed {
    let mut all = Typed::new();
    for (name, shape) in tensors {
        let layer = name.strip_suffix(".weight").filter(|_| shape.len() > 1);
        if let Some(layer) = layer {
            all.insert(format!("{layer}.{scale}"), ("F32", Vec::new()));
        }
        all.insert(name.clone(), (if layer.is_some() { "F8_E4M3" } else { "BF16" }, shape.clone()));
    }
    all
}

/// Writes the header of these, with `metadata`, and leaves the rest a hole; returns the whole length.
pub(crate) fn write_typed(path: &Path, tensors: &Typed, metadata: &[(&str, String)]) -> u64 {
    let tensors: Vec<(&String, &str, &Vec<u64>)> =
        tensors.iter().map(|(name, (dtype, shape))| (name, *dtype, shape)).collect();
    let (header, rest) = header_of(&tensors, metadata);
    hole(path, &header, header.len() as u64 + rest)
}

/// The first bytes of a safetensors file, and how many follow.
pub(crate) fn header(tensors: &Tensors, dtype: &str) -> (Vec<u8>, u64) {
    header_of(&tensors.iter().map(|(name, shape)| (name, dtype, shape)).collect::<Vec<_>>(), &[])
}

fn header_of(tensors: &[(&String, &str, &Vec<u64>)], metadata: &[(&str, String)]) -> (Vec<u8>, u64) {
    let width = |dtype: &str| match dtype {
        "F32" | "I32" => 4,
        "BF16" | "F16" => 2,
        "F8_E4M3" | "U8" => 1,
        other => panic!("{other}"),
    };
    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        let texts: BTreeMap<&str, &String> = metadata.iter().map(|(key, text)| (*key, text)).collect();
        entries.insert("__metadata__".to_owned(), json!(texts));
    }
    let mut at = 0;
    for (name, dtype, shape) in tensors {
        let end = at + width(dtype) * shape.iter().product::<u64>();
        entries.insert((*name).clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let text = serde_json::to_vec(&entries).unwrap();
    ([&(text.len() as u64).to_le_bytes()[..], &text].concat(), at)
}

/// Writes the header, and leaves the rest a hole; returns the whole length.
pub(crate) fn write(path: &Path, tensors: &Tensors, dtype: &str) -> u64 {
    let (header, rest) = header(tensors, dtype);
    hole(path, &header, header.len() as u64 + rest)
}

/// Writes these first bytes of a file of `len` bytes.
pub(crate) fn hole(path: &Path, start: &[u8], len: u64) -> u64 {
    larder::fsio::create_dir_all(path.parent().unwrap(), None).unwrap();
    let mut file = fs_err::OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
    file.write_all(start).unwrap();
    file.set_len(len.max(start.len() as u64)).unwrap();
    len
}
