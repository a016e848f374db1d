//! Where the keys of a TOML text stand: looked up only when there is a mistake to report.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Place;

/// A TOML text that can be asked for the place of a key.
#[derive(Debug)]
pub struct Outline {
    path: PathBuf,
    text: String,
    values: OnceLock<Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    keys: Vec<String>,
    span: Range<usize>,
}

impl Outline {
    /// Keeps `text` to be asked later; `path` is only named.
    pub fn new(path: &Path, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), values: OnceLock::new() }
    }

    /// Where the value under `keys` begins: the deepest of them that is there. Items of lists count from 0.
    pub fn place(&self, keys: &[&str]) -> Place {
        let mut deepest = None;
        for depth in (1..=keys.len()).rev() {
            deepest = deepest.or_else(|| self.values().iter().find(|entry| entry.keys == keys[..depth]));
        }
        deepest.map_or_else(|| Place::file(&self.path), |entry| Place::at(&self.path, &self.text, entry.span.clone()))
    }

    /// The name of the key whose value is, or contains, what stands at byte `at`.
    pub(super) fn key_at(&self, at: usize) -> Option<&str> {
        let around = self.values().iter().filter(|entry| entry.span.contains(&at));
        let innermost = around.min_by_key(|entry| entry.span.len())?;
        innermost.keys.iter().rev().find(|key| key.parse::<usize>().is_err()).map(String::as_str)
    }

    fn values(&self) -> &[Entry] {
        self.values.get_or_init(|| {
            let mut values = Vec::new();
            // A text that is no TOML has no outline: its one mistake says itself where it is.
            if let Ok(table) = DeTable::parse(&self.text) {
                walk_table(table.get_ref(), &[], &mut values);
            }
            values
        })
    }
}

fn walk_table(table: &DeTable<'_>, above: &[String], into: &mut Vec<Entry>) {
    for (key, value) in table {
        walk(value, [above, &[key.get_ref().to_string()]].concat(), into);
    }
}

fn walk(value: &Spanned<DeValue<'_>>, keys: Vec<String>, into: &mut Vec<Entry>) {
    match value.get_ref() {
        DeValue::Table(table) => walk_table(table, &keys, into),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(item, [keys.as_slice(), &[index.to_string()]].concat(), into);
            }
        }
        _ => {}
    }
    into.push(Entry { keys, span: value.span() });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_key_that_is_there_is_found() {
        let outline = Outline::new(Path::new("x"), "a = 1\n[b.c]\nd = [\"e\", { f = 2 }]\n");
        let place = |keys: &[&str]| outline.place(keys).to_string();
        assert_eq!(place(&["a"]), "x:1:5");
        assert_eq!(place(&["b", "c", "d", "1", "f"]), "x:3:17");
        assert_eq!(place(&["b", "c", "nothing"]), "x:2:1");
        assert_eq!(place(&["nothing"]), "x");
        assert_eq!(outline.key_at(18), Some("d"));
    }
}
