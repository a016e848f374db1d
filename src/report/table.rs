//! Tables and phrases that all reports share.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A table without lines, at most `width` columns wide.
pub fn plain(width: u16, header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table.set_header(header.to_vec());
    if let Some(first) = table.column_mut(0) {
        first.set_padding((2, 1));
    }
    table
}

/// Right-aligns the columns with the given numbers.
pub fn align_right(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The table's text without spaces at the ends of lines.
pub fn text(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// `1 file`, `2 files`.
pub fn count(number: usize, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// How long ago a moment was: `just now`, `5 minutes ago`, `2 days ago`.
pub fn ago(then: i64, now: i64) -> String {
    let seconds = (now - then).max(0);
    let (number, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{} ago", count(number as usize, unit))
}
