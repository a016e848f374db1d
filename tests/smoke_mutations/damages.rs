//! What can happen to the tensors of any model.

use crate::tiny_generators::{Numbers, Tensors, Tiny, filled};

pub(crate) fn tensors<'a>(tiny: &'a mut Tiny, path: &str) -> &'a mut Tensors {
    tiny.weights.get_mut(path).unwrap()
}

pub(crate) fn swap(tiny: &mut Tiny, path: &str, [one, other]: [&str; 2]) {
    let tensors = tensors(tiny, path);
    let (a, b) = (tensors[one].clone(), tensors[other].clone());
    tensors.insert(one.to_owned(), b);
    tensors.insert(other.to_owned(), a);
}

/// Turns rows into columns; the header says so, or not.
pub(crate) fn transpose(tiny: &mut Tiny, path: &str, name: &str, told: bool) {
    let tensor = tensors(tiny, path).get_mut(name).unwrap();
    let [rows, columns] = tensor.shape[..] else { panic!("{name} is no matrix") };
    tensor.numbers = (0..columns)
        .flat_map(|column| (0..rows).map(move |row| row * columns + column))
        .map(|at| tensor.numbers[at])
        .collect();
    if told {
        tensor.shape = vec![columns, rows];
    }
}

pub(crate) fn zero(tensors: &mut Tensors, of: &str) {
    for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.starts_with(of)) {
        tensor.numbers.fill(0.0);
    }
}

/// Other random weights of the same shapes.
pub(crate) fn redraw(tensors: &mut Tensors, of: &str) {
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.starts_with(of)) {
        tensor.numbers = filled(&format!("other.{name}"), &tensor.shape);
    }
}

/// Matrices in eight bits with a scale each, and the mark of such files; of them those whose names contain a word.
pub(crate) fn in_eight_bits(tiny: &mut Tiny, path: &str, word: &str) {
    let tensors = tensors(tiny, path);
    let matrices: Vec<String> = tensors
        .iter()
        .filter(|(name, tensor)| tensor.shape.len() == 2 && name.ends_with(".weight") && name.contains(word))
        .map(|(name, _)| name.clone())
        .collect();
    for name in matrices {
        let tensor = tensors.get_mut(&name).unwrap();
        let largest = tensor.numbers.iter().fold(0_f32, |max, number| max.max(number.abs()));
        let scale = largest / 448.0;
        tensor.numbers.iter_mut().for_each(|number| *number /= scale);
        tensor.dtype = "F8_E4M3";
        let scale = Numbers { shape: Vec::new(), numbers: vec![scale], dtype: "F32" };
        tensors.insert(name.replace(".weight", ".scale_weight"), scale);
    }
    let mark = Numbers { shape: vec![0], numbers: Vec::new(), dtype: "F8_E4M3" };
    tensors.insert("scaled_fp8".to_owned(), mark);
}

pub(crate) fn without(tiny: &mut Tiny, path: &str, ending: &str) {
    tensors(tiny, path).retain(|name, _| !name.ends_with(ending));
}
