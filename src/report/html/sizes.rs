//! Sizes as a picture: one area for each artifact, once for wide screens and once for narrow ones.

use super::treemap::{Area, squarified};
use super::{class, escaped};
use crate::report::overview::{Overview, ReportedArtifact};
use crate::report::phrases;
use crate::report::table::count;
use crate::size::Bytes;

/// Areas beyond this number are drawn as one: they would be too small to see.
const DRAWN: usize = 120;
const GAP: f64 = 2.0;

struct Picture {
    id: &'static str,
    width: f64,
    height: f64,
    letter: f64,
}

const WIDE: Picture = Picture { id: "wide-map", width: 1000.0, height: 460.0, letter: 14.0 };
const NARROW: Picture = Picture { id: "narrow-map", width: 360.0, height: 520.0, letter: 13.0 };

/// One area: what it is called and how it is coloured.
struct Item {
    name: String,
    what: String,
    class: &'static str,
    weight: u64,
}

/// The section with both pictures; empty where nothing has a size.
pub(super) fn section(overview: &Overview) -> String {
    let items = items(overview);
    if items.is_empty() {
        return String::new();
    }
    format!(
        "<section id=\"sizes\" aria-labelledby=\"sizes-title\">\n<h2 id=\"sizes-title\">Sizes</h2>\n\
         <ul class=\"legend\"><li class=\"good\">in order, read</li><li class=\"open\">in order, not read yet</li>\
         <li class=\"bad\">not in order</li></ul>\n{}{}</section>\n",
        picture(&WIDE, &items, overview),
        picture(&NARROW, &items, overview)
    )
}

fn items(overview: &Overview) -> Vec<Item> {
    let mut artifacts: Vec<&ReportedArtifact> = overview.artifacts.iter().filter(|one| one.weight() > 0).collect();
    artifacts.sort_by_key(|one| std::cmp::Reverse(one.weight()));
    let drawn = if artifacts.len() > DRAWN { DRAWN - 1 } else { artifacts.len() };
    let (single, rest) = artifacts.split_at(drawn);
    let mut items: Vec<Item> = single.iter().map(|one| item(one)).collect();
    if !rest.is_empty() {
        let weight = rest.iter().map(|one| one.weight()).sum();
        let worst = ["bad", "open", "good"].into_iter().find(|wanted| rest.iter().any(|one| class(one) == *wanted));
        let what = format!("{} in {}", Bytes(weight), count(rest.len(), "smaller artifact"));
        items.push(Item { name: "others".to_owned(), what, class: worst.unwrap_or("open"), weight });
        items.sort_by_key(|item| std::cmp::Reverse(item.weight));
    }
    items
}

fn item(artifact: &ReportedArtifact) -> Item {
    let size = phrases::bytes_of(artifact.status.here_bytes, artifact.wanted_bytes);
    Item {
        name: artifact.status.artifact.clone(),
        what: format!("{size}, {}", phrases::state(artifact)),
        class: class(artifact),
        weight: artifact.weight(),
    }
}

fn picture(picture: &Picture, items: &[Item], overview: &Overview) -> String {
    let Picture { id, width, height, .. } = picture;
    let weights: Vec<f64> = items.iter().map(|item| item.weight as f64).collect();
    let areas = squarified(&weights, Area { x: 0.0, y: 0.0, width: *width, height: *height });
    let cells: String = items.iter().zip(&areas).map(|(item, area)| cell(item, *area, picture.letter)).collect();
    let largest = items.first().map(|item| format!("; the largest is {}", item.name)).unwrap_or_default();
    let (all, bytes) = (count(overview.artifacts.len(), "artifact"), Bytes(items.iter().map(|item| item.weight).sum()));
    format!(
        "<svg class=\"map {id}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"{id}-title {id}-words\" \
         xmlns=\"http://www.w3.org/2000/svg\">\n<title id=\"{id}-title\">Sizes of {all}, {bytes}</title>\n\
         <desc id=\"{id}-words\">Each rectangle is one artifact, as large as its bytes{}. The table below has the numbers.</desc>\n\
         {cells}</svg>\n",
        escaped(&largest)
    )
}

fn cell(item: &Item, area: Area, letter: f64) -> String {
    let (width, height) = ((area.width - GAP).max(0.5), (area.height - GAP).max(0.5));
    let title = format!("{}: {}", item.name, item.what);
    let mut out = format!(
        "<g><title>{}</title><rect class=\"{}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\"/>",
        escaped(&title),
        item.class,
        area.x,
        area.y
    );
    for (line, text) in lines(item, width, height, letter).iter().enumerate() {
        let y = area.y + letter * (1.3 + line as f64 * 1.25);
        out.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{y:.1}\" font-size=\"{letter}\">{}</text>",
            area.x + 5.0,
            escaped(text)
        ));
    }
    out.push_str("</g>\n");
    out
}

/// What fits into an area: name and size, a name cut off, or nothing.
fn lines(item: &Item, width: f64, height: f64, letter: f64) -> Vec<String> {
    // Letters of a usual typeface are about 0.58 as wide as high.
    let letters = ((width - 8.0) / (letter * 0.58)).max(0.0) as usize;
    let rows = ((height - 4.0) / (letter * 1.25)).max(0.0) as usize;
    if rows == 0 || letters < 4 {
        return Vec::new();
    }
    let name = if item.name.chars().count() <= letters {
        item.name.clone()
    } else {
        item.name.chars().take(letters - 1).chain(['…']).collect()
    };
    let size = Bytes(item.weight).to_string();
    if rows > 1 && size.chars().count() <= letters { vec![name, size] } else { vec![name] }
}
