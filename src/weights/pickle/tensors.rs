//! The tensors that a pickle builds, by the names under which its dictionaries hold them.

use crate::weights::pickle::{Followed, Id, Value};

/// Tensors that are collected at most, and dictionaries that are looked into: far more than any model has.
const MAX_STEPS: usize = 1 << 20;
const MAX_DEPTH: usize = 16;

/// A tensor as the pickle builds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Built {
    /// The keys that lead to it, joined with dots.
    pub(crate) name: String,
    /// Its element type as safetensors writes it.
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    /// First byte within its storage.
    pub(crate) offset: u64,
    /// Bytes from the first element to the last, however they are strided.
    pub(crate) span: u64,
    pub(crate) storage: Storage,
}

/// The bytes that one or several tensors lie in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    /// What torch calls it by.
    pub(crate) key: String,
    /// How many elements it has.
    pub(crate) count: u64,
    /// Its length in bytes.
    pub(crate) bytes: u64,
}

impl Followed {
    /// The tensors, in the pickle's order. Names that occur twice are told twice.
    pub(crate) fn tensors(&self) -> Vec<Built> {
        let mut collector = Collector { followed: self, found: Vec::new(), steps: 0 };
        collector.collect(self.root, String::new(), 0);
        collector.found
    }

    /// Every storage of a known element type that the pickle mentions, once.
    pub(crate) fn storages(&self) -> Vec<Storage> {
        let mut seen = std::collections::BTreeSet::new();
        let ids = (0..self.values.len()).filter(|id| matches!(self.values[*id], Value::Persistent(_)));
        ids.filter_map(|id| Some(self.storage(id)?.0)).filter(|storage| seen.insert(storage.key.clone())).collect()
    }

    /// The texts of the list that the pickle makes; `None` where it makes something else.
    pub(crate) fn texts(&self) -> Option<Vec<String>> {
        let Value::List(members) = &self.values[self.root] else { return None };
        members.iter().map(|id| Some(self.text(*id)?.to_owned())).collect()
    }

    fn text(&self, id: Id) -> Option<&str> {
        if let Value::Text(text) = &self.values[id] { Some(text) } else { None }
    }

    fn int_at(&self, id: Id) -> Option<i64> {
        if let Value::Int(number) = &self.values[id] { Some(*number) } else { None }
    }

    fn sizes(&self, id: Id) -> Option<Vec<u64>> {
        let members = match &self.values[id] {
            Value::Tuple(members) | Value::List(members) => members,
            // torch.Size of a tuple.
            Value::Call(_, arguments) => return self.sizes(*arguments.first()?),
            _ => return None,
        };
        members.iter().map(|id| u64::try_from(self.int_at(*id)?).ok()).collect()
    }

    /// The storage that a persistent id stands for, its element type, and the length of one element.
    fn storage(&self, id: Id) -> Option<(Storage, &'static str, u64)> {
        let Value::Persistent(id) = self.values[id] else { return None };
        let Value::Tuple(parts) = &self.values[id] else { return None };
        let [kind, class, key, _, count, ..] = parts.as_slice() else { return None };
        let Value::Import(_, class) = &self.values[*class] else { return None };
        if self.text(*kind) != Some("storage") {
            return None;
        }
        let (dtype, width) = number_format(class.strip_suffix("Storage")?)?;
        let count = u64::try_from(self.int_at(*count)?).ok()?;
        let bytes = count.checked_mul(width)?;
        Some((Storage { key: self.text(*key)?.to_owned(), count, bytes }, dtype, width))
    }

    fn tensor(&self, name: &str, function: &str, arguments: &[Id]) -> Option<Built> {
        let [storage, offset, shape, strides, rest @ ..] = arguments else { return None };
        let (storage, mut dtype, stored) = self.storage(*storage)?;
        let mut width = stored;
        if function == "_rebuild_tensor_v3" {
            let Value::Import(_, name) = &self.values[*rest.get(2)?] else { return None };
            (dtype, width) = element_type(name)?;
        }
        let (shape, strides) = (self.sizes(*shape)?, self.sizes(*strides)?);
        let offset = u64::try_from(self.int_at(*offset)?).ok()?;
        let (offset, span) = (offset.checked_mul(width)?, span(&shape, &strides)?.checked_mul(width)?);
        Some(Built { name: name.to_owned(), dtype: dtype.to_owned(), shape, offset, span, storage })
    }
}

struct Collector<'a> {
    followed: &'a Followed,
    found: Vec<Built>,
    steps: usize,
}

impl Collector<'_> {
    fn collect(&mut self, id: Id, name: String, depth: usize) {
        self.steps += 1;
        if depth > MAX_DEPTH || self.steps > MAX_STEPS {
            return;
        }
        match &self.followed.values[id] {
            Value::Dict(items) => {
                for (key, value) in items {
                    let Some(key) = self.followed.text(*key) else { continue };
                    let full = if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
                    self.collect(*value, full, depth + 1);
                }
            }
            Value::Call(function, arguments) => self.collect_call(*function, arguments, name, depth),
            _ => {}
        }
    }

    fn collect_call(&mut self, function: Id, arguments: &[Id], name: String, depth: usize) {
        let Value::Import(_, function) = &self.followed.values[function] else { return };
        match (function.as_str(), arguments) {
            ("_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3", _) => {
                self.found.extend(self.followed.tensor(&name, function, arguments));
            }
            // A parameter is the tensor that is its first argument.
            ("_rebuild_parameter" | "_rebuild_parameter_with_state" | "Parameter", [tensor, ..]) => {
                self.collect(*tensor, name, depth + 1);
            }
            ("_rebuild_from_type_v2", [function, _, arguments, ..]) => {
                if let Value::Tuple(arguments) = &self.followed.values[*arguments] {
                    self.collect_call(*function, arguments, name, depth + 1);
                }
            }
            _ => {}
        }
    }
}

/// Elements from the first to the last of a tensor; none for an empty one.
fn span(shape: &[u64], strides: &[u64]) -> Option<u64> {
    if shape.len() != strides.len() {
        return None;
    }
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().zip(strides).try_fold(1_u64, |span, (size, stride)| span.checked_add((size - 1).checked_mul(*stride)?))
}

fn number_format(storage: &str) -> Option<(&'static str, u64)> {
    Some(match storage {
        "Float" => ("F32", 4),
        "Double" => ("F64", 8),
        "Half" => ("F16", 2),
        "BFloat16" => ("BF16", 2),
        "Long" => ("I64", 8),
        "Int" => ("I32", 4),
        "Short" => ("I16", 2),
        "Char" => ("I8", 1),
        "Byte" | "Untyped" => ("U8", 1),
        "Bool" => ("BOOL", 1),
        "ComplexFloat" => ("C64", 8),
        "Float8_e4m3fn" => ("F8_E4M3", 1),
        "Float8_e5m2" => ("F8_E5M2", 1),
        _ => return None,
    })
}

fn element_type(name: &str) -> Option<(&'static str, u64)> {
    Some(match name {
        "float32" | "float" => ("F32", 4),
        "float64" | "double" => ("F64", 8),
        "float16" | "half" => ("F16", 2),
        "bfloat16" => ("BF16", 2),
        "int64" => ("I64", 8),
        "int32" => ("I32", 4),
        "int16" => ("I16", 2),
        "int8" => ("I8", 1),
        "uint8" => ("U8", 1),
        "uint16" => ("U16", 2),
        "uint32" => ("U32", 4),
        "uint64" => ("U64", 8),
        "bool" => ("BOOL", 1),
        "complex64" => ("C64", 8),
        "float8_e4m3fn" => ("F8_E4M3", 1),
        "float8_e5m2" => ("F8_E5M2", 1),
        "float8_e4m3fnuz" => ("F8_E4M3FNUZ", 1),
        "float8_e5m2fnuz" => ("F8_E5M2FNUZ", 1),
        "float8_e8m0fnu" => ("F8_E8M0", 1),
        _ => return None,
    })
}
