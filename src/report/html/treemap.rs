//! Areas in a rectangle, each as large as its weight, as close to squares as it goes.
//!
//! The rows are those of Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000): a row along the shorter
//! side takes one more item as long as that makes its worst item less oblong.

/// A rectangle; `x` and `y` are its upper left corner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Area {
    /// From the left.
    pub x: f64,
    /// From the top.
    pub y: f64,
    /// To the right.
    pub width: f64,
    /// Downwards.
    pub height: f64,
}

/// One area for each weight, in order. Weights are positive and sorted, the largest first.
pub fn squarified(weights: &[f64], within: Area) -> Vec<Area> {
    let total: f64 = weights.iter().sum();
    let scale = within.width * within.height / total;
    let sizes: Vec<f64> = weights.iter().map(|weight| weight * scale).collect();
    let (mut rest, mut free) = (sizes.as_slice(), within);
    let mut areas = Vec::with_capacity(weights.len());
    while !rest.is_empty() {
        let side = free.width.min(free.height);
        let mut length = 1;
        while length < rest.len() && worst(&rest[..=length], side) <= worst(&rest[..length], side) {
            length += 1;
        }
        let (row, others) = rest.split_at(length);
        free = lay(row, free, &mut areas);
        rest = others;
    }
    areas
}

/// How oblong the worst item of a row along `side` is; 1 is a square.
fn worst(row: &[f64], side: f64) -> f64 {
    let sum: f64 = row.iter().sum();
    let ratio = |size: f64| {
        let breadth = size * side / sum;
        let depth = sum / side;
        (breadth / depth).max(depth / breadth)
    };
    row.iter().map(|size| ratio(*size)).fold(1.0, f64::max)
}

/// Lays a row along the shorter side of `free`, and gives what is left.
fn lay(row: &[f64], free: Area, into: &mut Vec<Area>) -> Area {
    let sum: f64 = row.iter().sum();
    let upright = free.width >= free.height;
    let depth = sum / free.width.min(free.height);
    let mut along = 0.0;
    for size in row {
        let breadth = size / depth;
        into.push(if upright {
            Area { x: free.x, y: free.y + along, width: depth, height: breadth }
        } else {
            Area { x: free.x + along, y: free.y, width: breadth, height: depth }
        });
        along += breadth;
    }
    if upright {
        Area { x: free.x + depth, width: (free.width - depth).max(0.0), ..free }
    } else {
        Area { y: free.y + depth, height: (free.height - depth).max(0.0), ..free }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCREEN: Area = Area { x: 0.0, y: 0.0, width: 600.0, height: 400.0 };

    #[test]
    fn the_example_of_the_paper_comes_out() {
        let areas = squarified(&[6.0, 6.0, 4.0, 3.0, 2.0, 2.0, 1.0], SCREEN);
        let rounded: Vec<[i64; 4]> = areas
            .iter()
            .map(|area| [area.x, area.y, area.width, area.height].map(|number| number.round() as i64))
            .collect();
        assert_eq!(rounded[0], [0, 0, 300, 200]);
        assert_eq!(rounded[1], [0, 200, 300, 200]);
        assert_eq!(rounded[2], [300, 0, 171, 233]);
        assert_eq!(rounded[3], [471, 0, 129, 233]);
    }

    proptest::proptest! {
        #[test]
        fn areas_have_their_sizes_stay_inside_and_do_not_overlap(mut weights in proptest::collection::vec(1.0_f64..1e9, 1..60)) {
            weights.sort_by(|a, b| b.total_cmp(a));
            let areas = squarified(&weights, SCREEN);
            let total: f64 = weights.iter().sum();
            for (area, weight) in areas.iter().zip(&weights) {
                let share = area.width * area.height / (SCREEN.width * SCREEN.height);
                proptest::prop_assert!((share - weight / total).abs() < 1e-6);
                proptest::prop_assert!(area.x >= -1e-6 && area.x + area.width <= SCREEN.width + 1e-6);
                proptest::prop_assert!(area.y >= -1e-6 && area.y + area.height <= SCREEN.height + 1e-6);
            }
            for (index, a) in areas.iter().enumerate() {
                for b in &areas[index + 1..] {
                    let across = (a.x + a.width).min(b.x + b.width) - a.x.max(b.x);
                    let down = (a.y + a.height).min(b.y + b.height) - a.y.max(b.y);
                    proptest::prop_assert!(across < 1e-6 || down < 1e-6, "{a:?} {b:?}");
                }
            }
        }
    }
}
