//! `larder list` as text: a table for each section, then the totals beside the document's figures.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};

use crate::report::list::details::push_details;
use crate::report::list::{Certainty, Kind, List, ListedArtifact, ListedSection, Size, Total};
use crate::size::Bytes;

const HEADER: [&str; 9] = ["artifact", "kind", "files", "pinned", "size", "licence", "gate", "store", "source"];
const SOURCE: usize = 8;
const INDENT: &str = "  ";
/// Of what goes on below something indented.
const REST: &str = "    ";
/// Narrower than this, the column of sources is left out.
const NARROWEST_SOURCE: usize = 24;

/// The list for a terminal of `width` columns, without colours.
///
/// What an artifact is for, where it goes and what to know of it is told where only one is listed, or all with `verbose`.
pub fn render(list: &List, width: u16, verbose: bool) -> String {
    let rows: Vec<[String; 9]> = list.artifacts.iter().map(row).collect();
    let widths = column_widths(&rows, usize::from(width));
    let mut text = String::new();
    for section in &list.sections {
        let own = |artifact: &ListedArtifact| artifact.section.as_ref() == Some(&section.name);
        push_table(&mut text, &section.title, &shown(list, &rows, own), &widths);
        if widths[SOURCE] == 0 {
            push_originals(&mut text, list, own, usize::from(width));
        }
        push_section_total(&mut text, section, usize::from(width));
    }
    let rest = shown(list, &rows, |artifact| artifact.section.is_none());
    push_table(&mut text, "Without a section", &rest, &widths);
    let with_details = verbose || list.artifacts.len() == 1;
    if with_details {
        push_details(&mut text, list, usize::from(width));
    }
    push_packages(&mut text, list, with_details, usize::from(width));
    push_cloud(&mut text, list);
    push_conditions(&mut text, list, usize::from(width));
    push_profiles(&mut text, list, usize::from(width));
    push_wrapped(&mut text, "", &format!("All that is listed: {}", total_words(&list.total)), usize::from(width));
    push_outside(&mut text, list, usize::from(width));
    let notes = list.artifacts.iter().filter(|artifact| artifact.note.is_some()).count();
    if notes > 0 && !with_details {
        let have = if notes == 1 { "has a note" } else { "have notes" };
        let _ = writeln!(text, "{notes} of these {have}: larder list --verbose");
    }
    text
}

fn row(artifact: &ListedArtifact) -> [String; 9] {
    [
        artifact.name.clone(),
        kind_word(artifact.kind).to_owned(),
        files_words(artifact),
        pinned_words(artifact),
        size_words(artifact.size),
        artifact.license.clone().unwrap_or_else(|| "?".to_owned()),
        if artifact.gated { "gated".to_owned() } else { String::new() },
        artifact
            .folder
            .as_ref()
            .map_or_else(|| artifact.store.clone(), |folder| format!("{}/{folder}", artifact.store)),
        source_words(artifact),
    ]
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Pipeline => "pipeline",
        Kind::Repository => "repository",
        Kind::SingleFile => "single file",
        Kind::Image => "image",
        Kind::Files => "files",
        Kind::Copy => "known copy",
        Kind::InHouse => "in-house",
        Kind::Unidentified => "unidentified",
    }
}

fn files_words(artifact: &ListedArtifact) -> String {
    match (artifact.files, artifact.files_complete) {
        (0, _) => "?".to_owned(),
        (known, true) => known.to_string(),
        (known, false) => format!("{known}+"),
    }
}

fn pinned_words(artifact: &ListedArtifact) -> String {
    match (artifact.pinned, artifact.files) {
        _ if artifact.manifest_pinned => "manifest".to_owned(),
        (0, _) => "none".to_owned(),
        (pinned, files) if pinned == files && artifact.files_complete => "all".to_owned(),
        (pinned, files) => format!("{pinned} of {files}"),
    }
}

fn size_words(size: Size) -> String {
    let Some(bytes) = size.bytes else { return "?".to_owned() };
    let mark = match size.certainty {
        Certainty::Exact | Certainty::Unknown => "",
        Certainty::Approximate => "~",
        Certainty::AtLeast => "≥",
    };
    format!("{mark}{}", Bytes(bytes))
}

/// The source with commits cut to the length that people compare.
fn source_words(artifact: &ListedArtifact) -> String {
    if let Some(original) = &artifact.duplicate_of {
        return format!("copy of {original}");
    }
    match artifact.sources.as_slice() {
        [] => String::new(),
        [one] => short_commit(one),
        several => format!("{} and {} more", short_commit(&several[0]), several.len() - 1),
    }
}

fn short_commit(source: &str) -> String {
    let Some((repository, rest)) = source.split_once('@') else { return source.to_owned() };
    let (revision, path) = rest.split_once('/').map_or((rest, String::new()), |(r, path)| (r, format!("/{path}")));
    let is_commit = revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_commit { format!("{repository}@{}{path}", &revision[..7]) } else { source.to_owned() }
}

/// The same widths for the tables of all sections; 0 leaves a column out.
fn column_widths(rows: &[[String; 9]], width: usize) -> [usize; 9] {
    let mut widths = HEADER.map(str::len);
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            widths[column] = widths[column].max(cell.chars().count());
        }
    }
    let others: usize = widths[..SOURCE].iter().sum::<usize>() + INDENT.len() * SOURCE;
    let room = width.saturating_sub(others + INDENT.len());
    widths[SOURCE] = if room < NARROWEST_SOURCE { 0 } else { widths[SOURCE].min(room) };
    widths
}

fn shown<'a>(list: &List, rows: &'a [[String; 9]], belongs: impl Fn(&ListedArtifact) -> bool) -> Vec<&'a [String; 9]> {
    list.artifacts.iter().zip(rows).filter(|(artifact, _)| belongs(artifact)).map(|(_, row)| row).collect()
}

fn push_table(text: &mut String, title: &str, rows: &[&[String; 9]], widths: &[usize; 9]) {
    if rows.is_empty() {
        return;
    }
    let columns = if widths[SOURCE] == 0 { SOURCE } else { SOURCE + 1 };
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(&HEADER[..columns]);
    for row in rows {
        table.add_row(&row[..columns]);
    }
    for (column, width) in table.column_iter_mut().zip(widths) {
        column.set_padding((0, 2));
        let padded = u16::try_from(width + 2).unwrap_or(u16::MAX);
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(padded)));
    }
    for column in [2, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let _ = writeln!(text, "{title}");
    for line in table.to_string().lines() {
        let _ = writeln!(text, "{INDENT}{}", line.trim_end());
    }
}

/// Of what copies are one, where there is no room for the column that says so.
fn push_originals(text: &mut String, list: &List, belongs: impl Fn(&ListedArtifact) -> bool, width: usize) {
    for copy in list.artifacts.iter().filter(|artifact| belongs(artifact)) {
        if let Some(original) = &copy.duplicate_of {
            push_entry(text, &format!("{} is a copy of {original}", copy.name), width);
        }
    }
}

fn push_section_total(text: &mut String, section: &ListedSection, width: usize) {
    push_wrapped(text, "", &format!("{}: {}", section.title, total_words(&section.total)), width);
    let documented = section.documented.as_ref().map(|documented| format!("The document says {documented}."));
    let words: Vec<&str> = documented.iter().chain(&section.difference).map(String::as_str).collect();
    push_wrapped(text, INDENT, &words.join(" "), width);
    text.push('\n');
}

fn total_words(total: &Total) -> String {
    let copies = if total.copies == 1 { "copy" } else { "copies" };
    if total.artifacts == 0 {
        return format!("{} known {copies}, not counted", total.copies);
    }
    let mark = if total.exact_bytes == total.bytes { "" } else { "~" };
    let decimal = total.bytes as f64 / 1e9;
    let mut words = format!(
        "{}, {}, {} of them pinned, {mark}{} ({mark}{decimal:.1} GB)",
        count(total.artifacts, "artifact"),
        count(total.files, "known file"),
        total.pinned,
        Bytes(total.bytes),
    );
    if total.unknown > 0 {
        let _ = write!(words, ", and {} of unknown size", total.unknown);
    }
    if total.copies > 0 {
        let _ = write!(words, "; not counted: {} known {copies}", total.copies);
    }
    words
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn push_packages(text: &mut String, list: &List, with_details: bool, width: usize) {
    if list.packages.is_empty() {
        return;
    }
    let _ = writeln!(text, "Python packages");
    for package in &list.packages {
        let version = package.version.as_deref().map(|version| format!("=={version}")).unwrap_or_default();
        let revision = package.revision.as_deref().map(|commit| format!(" at {commit}")).unwrap_or_default();
        let pinned = if package.pinned { ", pinned" } else { "" };
        let other = package.documented.as_ref().filter(|said| package.version.as_ref() != Some(said));
        let documented = other.map(|said| format!(" (the document says {said})")).unwrap_or_default();
        let _ = writeln!(text, "{INDENT}{}{version}{revision}{pinned}{documented}", package.name);
        let told = package.purpose.iter().chain(&package.note).filter(|_| with_details);
        told.for_each(|words| push_lines(text, [REST; 2], words, width));
    }
    text.push('\n');
}

fn push_cloud(text: &mut String, list: &List) {
    if list.cloud.is_empty() {
        return;
    }
    let _ = writeln!(text, "Cloud models (nothing to store; a private key file each)");
    for model in &list.cloud {
        let _ = writeln!(text, "{INDENT}{}: {} at {}, key {}", model.name, model.model, model.provider, model.key);
    }
    text.push('\n');
}

fn push_conditions(text: &mut String, list: &List, width: usize) {
    if list.conditions.is_empty() {
        return;
    }
    let _ = writeln!(text, "Conditions");
    for condition in &list.conditions {
        push_entry(text, &format!("{}: {}", condition.name, condition.why), width);
    }
    text.push('\n');
}

/// The sets of artifacts and their sums; the one that is listed is marked.
fn push_profiles(text: &mut String, list: &List, width: usize) {
    if list.profiles.is_empty() {
        return;
    }
    let _ = writeln!(text, "Profiles");
    for profile in &list.profiles {
        let mark = if profile.listed { ", which is listed here" } else { "" };
        push_entry(text, &format!("{}{mark}: {}", profile.name, total_words(&profile.total)), width);
        profile.title.iter().for_each(|title| push_lines(text, [REST; 2], title, width));
    }
    text.push('\n');
}

fn push_outside(text: &mut String, list: &List, width: usize) {
    let Some(outside) = list.outside.filter(|outside| outside.artifacts + outside.copies > 0) else { return };
    let Some(profile) = list.profiles.iter().find(|profile| profile.listed) else { return };
    let copies = if outside.copies == 1 { "copy" } else { "copies" };
    let parts = [
        (outside.artifacts > 0).then(|| count(outside.artifacts, "artifact")),
        (outside.copies > 0).then(|| format!("{} known {copies}", outside.copies)),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let words = format!("Outside profile {}: {}; see all with: larder list --all", profile.name, parts.join(" and "));
    push_wrapped(text, "", &words, width);
}

/// One of several things under a heading: its further lines are indented more than its first.
pub(super) fn push_entry(text: &mut String, words: &str, width: usize) {
    push_lines(text, [INDENT, REST], words, width);
}

/// Whole words; lines after the first are indented.
fn push_wrapped(text: &mut String, first_indent: &str, words: &str, width: usize) {
    push_lines(text, [first_indent, INDENT], words, width);
}

/// Whole words, with the indents of the first line and of all others.
fn push_lines(text: &mut String, [first, rest]: [&str; 2], words: &str, width: usize) {
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in words.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > width {
            let _ = writeln!(text, "{line}");
            rest.clone_into(&mut line);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    if !is_empty {
        let _ = writeln!(text, "{line}");
    }
}
