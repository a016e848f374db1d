//! What was found on a machine that larder does not keep yet.

use crate::adopt::{Seen, StoreSurvey, Survey};
use crate::report::table::{self, count};
use crate::size::Bytes;

/// How many things of one kind are named.
const NAMED: usize = 12;

/// A table of stores, then what deserves a look.
pub fn text(survey: &Survey, width: u16) -> String {
    let mut table = table::plain(width, &["store", "known", "elsewhere", "unknown", "links", "leftovers"]);
    for store in &survey.stores {
        let lists = [&store.known, &store.elsewhere, &store.unknown, &store.links, &store.leftovers];
        table.add_row(std::iter::once(store.store.clone()).chain(lists.map(|list| sum(list))));
    }
    table::align_right(&mut table, &[1, 2, 3, 4, 5]);
    let mut out = table::text(&table);
    for store in &survey.stores {
        out.push_str(&details(store));
    }
    out.push_str(&sections(survey, width));
    let unknown: u64 = survey.stores.iter().flat_map(|store| &store.unknown).map(|seen| seen.size).sum();
    let (proposed, read) = (count(survey.proposals.len(), "artifact"), Bytes(survey.bytes_read));
    out.push_str(&format!(
        "\nThe manifests lack {proposed}, {}; {read} were read to recognise content\n",
        Bytes(unknown)
    ));
    out
}

/// Where the document's totals hide what no manifest has.
fn sections(survey: &Survey, width: u16) -> String {
    if survey.sections.is_empty() {
        return String::new();
    }
    let mut table = table::plain(width, &["section", "the document says", "known here", "in no manifest"]);
    for section in &survey.sections {
        let unknown = match section.unknown {
            0 => "–".to_owned(),
            number => format!("{number}: {}", Bytes(section.unknown_bytes)),
        };
        let known = Bytes(section.known_bytes).to_string();
        table.add_row([section.title.clone(), section.documented.clone(), known, unknown]);
    }
    table::align_right(&mut table, &[1, 2, 3]);
    format!("\n{}", table::text(&table))
}

fn sum(list: &[Seen]) -> String {
    if list.is_empty() {
        return "–".to_owned();
    }
    format!("{}: {}", list.len(), Bytes(list.iter().map(|seen| seen.size).sum()))
}

fn details(store: &StoreSurvey) -> String {
    let mut out = String::new();
    let lists = [
        ("unknown", &store.unknown),
        ("elsewhere", &store.elsewhere),
        ("leftover", &store.leftovers),
        ("unreadable", &store.unreadable),
    ];
    for (word, list) in lists {
        for seen in list.iter().take(NAMED) {
            out.push_str(&format!("  {word}: {}/{}: {}, {}\n", store.store, seen.path, Bytes(seen.size), seen.what));
        }
        if list.len() > NAMED {
            out.push_str(&format!("  {word}: … and {} more in {}; all with --json\n", list.len() - NAMED, store.store));
        }
    }
    for seen in store.links.iter().filter(|seen| !seen.what.starts_with("a link within")).take(NAMED) {
        out.push_str(&format!("  link: {}/{}: {}\n", store.store, seen.path, seen.what));
    }
    if out.is_empty() { out } else { format!("\n{out}") }
}
