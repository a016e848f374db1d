//! A drawn picture, for autoencoders to show that they can give it back.

/// A picture of `side` by `side` pixels: colour after colour, each row by row, from -1 to 1.
///
/// A white and a black square, a red and a cyan circle on grey: large, plain, and as dark as bright.
pub(super) fn shapes(side: usize) -> Vec<f32> {
    let at = |share: f32| (share * side as f32) as usize;
    let within = |x: usize, y: usize, [left, top]: [f32; 2], size: f32| {
        (at(left)..at(left + size)).contains(&x) && (at(top)..at(top + size)).contains(&y)
    };
    let circle = |x: usize, y: usize, [middle, row]: [f32; 2]| {
        let [x, y] = [(x, middle), (y, row)].map(|(at, middle)| (at as f32 + 0.5) / side as f32 - middle);
        x * x + y * y < 0.18 * 0.18
    };
    let pixel = |x: usize, y: usize| {
        if within(x, y, [0.0625, 0.0625], 0.375) {
            [0.9, 0.9, 0.9]
        } else if within(x, y, [0.5625, 0.5625], 0.375) {
            [-0.9, -0.9, -0.9]
        } else if circle(x, y, [0.75, 0.25]) {
            [0.9, -0.9, -0.9]
        } else if circle(x, y, [0.25, 0.75]) {
            [-0.9, 0.9, 0.9]
        } else {
            [0.0; 3]
        }
    };
    (0..3).flat_map(|colour| (0..side * side).map(move |i| pixel(i % side, i / side)[colour])).collect()
}
