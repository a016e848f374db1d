//! A CLIP made by hand, as transformers and as open_clip store it: its image tower knows the mean colour, its text tower
//! the names of four colours.

use std::collections::BTreeMap;

use serde_json::json;

/// Width of both towers; the last two numbers of every state are large and opposite, so that norms change little else.
pub(crate) const WIDTH: usize = 8;
const LARGE: f32 = 100.0;
/// Width of the common space: red, green, blue, darkness.
const COMMON: usize = 4;
const PATCH: usize = 7;
const PATCHES: usize = 16;
/// How much the image tower's one layer adds of the picture's mean.
const GAIN: f32 = 5.0;
/// The tokens of the words for the four colours.
const COLOURS: [usize; 4] = [736, 1901, 1746, 1449];

/// Shapes and numbers, by name.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A matrix that is zero but for these places.
fn matrix(rows: usize, columns: usize, places: &[(usize, usize, f32)]) -> (Vec<usize>, Vec<f32>) {
    let mut numbers = vec![0.0; rows * columns];
    places.iter().for_each(|(row, column, number)| numbers[row * columns + column] = *number);
    (vec![rows, columns], numbers)
}

fn vector(numbers: Vec<f32>) -> (Vec<usize>, Vec<f32>) {
    (vec![numbers.len()], numbers)
}

/// Positions that are all alike.
fn positions(count: usize) -> (Vec<usize>, Vec<f32>) {
    let both = |row| [(row, WIDTH - 2, LARGE), (row, WIDTH - 1, -LARGE)];
    matrix(count, WIDTH, &(0..count).flat_map(both).collect::<Vec<_>>())
}

/// One layer that adds the mean of all places before, or of all.
fn layer(tensors: &mut Tensors, tower: &str, kept: usize, gain: f32) {
    let at = |name: &str| format!("{tower}.encoder.layers.0.{name}");
    for norm in ["layer_norm1", "layer_norm2"] {
        tensors.insert(at(&format!("{norm}.weight")), vector(vec![1.0; WIDTH]));
        tensors.insert(at(&format!("{norm}.bias")), vector(vec![0.0; WIDTH]));
    }
    let copied = |gain: f32| matrix(WIDTH, WIDTH, &(0..kept).map(|i| (i, i, gain)).collect::<Vec<_>>());
    for (part, gain) in [("q", 0.0), ("k", 0.0), ("v", 1.0), ("out", gain)] {
        tensors.insert(at(&format!("self_attn.{part}_proj.weight")), copied(gain));
        tensors.insert(at(&format!("self_attn.{part}_proj.bias")), vector(vec![0.0; WIDTH]));
    }
    for (name, rows, columns) in [("mlp.fc1", 4 * WIDTH, WIDTH), ("mlp.fc2", WIDTH, 4 * WIDTH)] {
        tensors.insert(at(&format!("{name}.weight")), matrix(rows, columns, &[]));
        tensors.insert(at(&format!("{name}.bias")), vector(vec![0.0; rows]));
    }
}

fn norm(tensors: &mut Tensors, name: &str) {
    tensors.insert(format!("{name}.weight"), vector(vec![1.0; WIDTH]));
    tensors.insert(format!("{name}.bias"), vector(vec![0.0; WIDTH]));
}

/// From the numbers of three colours to how much more of each there is than of the others.
fn differences(places: &mut Vec<(usize, usize, f32)>) {
    for row in 0..3 {
        places.extend((0..3).map(|column| (row, column, if row == column { 1.0 } else { -0.5 })));
    }
}

/// The model as transformers stores it.
pub(crate) fn clip() -> Tensors {
    let mut tensors = Tensors::new();
    let mut patch = vec![0.0; WIDTH * 3 * PATCH * PATCH];
    for channel in 0..3 {
        let start = (channel * 3 + channel) * PATCH * PATCH;
        patch[start..start + PATCH * PATCH].fill(1.0 / (PATCH * PATCH) as f32);
    }
    let embeddings = "vision_model.embeddings";
    tensors.insert(format!("{embeddings}.patch_embedding.weight"), (vec![WIDTH, 3, PATCH, PATCH], patch));
    tensors.insert(format!("{embeddings}.class_embedding"), vector(vec![0.0; WIDTH]));
    tensors.insert(format!("{embeddings}.position_embedding.weight"), positions(PATCHES + 1));
    norm(&mut tensors, "vision_model.pre_layrnorm");
    layer(&mut tensors, "vision_model", 3, GAIN);
    norm(&mut tensors, "vision_model.post_layernorm");
    // White is no colour, and not dark: what it gives in the three colours, of which two norms took their mean, is taken
    // from the large number, which norms leave at the root of half the width.
    let large = (WIDTH as f32 / 2.0).sqrt();
    let white = 3.0 * (1.0 - 3.0 / WIDTH as f32).powi(2) * GAIN * large / LARGE * PATCHES as f32 / (PATCHES + 1) as f32;
    let mut places = vec![(3, 0, -0.5), (3, 1, -0.5), (3, 2, -0.5), (3, WIDTH - 2, 0.5 * white / large)];
    differences(&mut places);
    tensors.insert("visual_projection.weight".to_owned(), matrix(COMMON, WIDTH, &places));

    let words: Vec<_> = COLOURS.iter().enumerate().map(|(i, token)| (*token, i, 10.0)).collect();
    tensors.insert("text_model.embeddings.token_embedding.weight".to_owned(), matrix(49408, WIDTH, &words));
    tensors.insert("text_model.embeddings.position_embedding.weight".to_owned(), positions(77));
    layer(&mut tensors, "text_model", 4, GAIN);
    norm(&mut tensors, "text_model.final_layer_norm");
    let mut places = vec![(3, 3, 1.0)];
    differences(&mut places);
    tensors.insert("text_projection.weight".to_owned(), matrix(COMMON, WIDTH, &places));
    tensors.insert("logit_scale".to_owned(), (vec![], vec![2.0]));
    tensors
}

/// The same under the names of open_clip.
pub(crate) fn open_clip(tensors: &Tensors) -> Tensors {
    let transposed = |(shape, numbers): &(Vec<usize>, Vec<f32>)| {
        let (rows, columns) = (shape[0], shape[1]);
        let turned = (0..rows * columns).map(|i| numbers[i % rows * columns + i / rows]);
        (vec![columns, rows], turned.collect())
    };
    let mut renamed = Tensors::new();
    for (name, tensor) in tensors {
        match name.as_str() {
            "text_projection.weight" => drop(renamed.insert("text_projection".to_owned(), transposed(tensor))),
            "visual_projection.weight" => drop(renamed.insert("visual.proj".to_owned(), transposed(tensor))),
            _ => drop(renamed.insert(open_clip_name(name), tensor.clone())),
        }
    }
    // Queries, keys and values are one.
    for tower in ["", "visual."] {
        for kind in ["weight", "bias"] {
            let at = |part: &str| format!("{tower}transformer.resblocks.0.{part}{kind}");
            let parts = ["q", "k", "v"].map(|part| renamed.remove(&at(&format!("self_attn.{part}_proj."))).unwrap());
            let mut shape = parts[0].0.clone();
            shape[0] *= 3;
            renamed.insert(at("attn.in_proj_"), (shape, parts.map(|part| part.1).concat()));
        }
    }
    renamed
}

fn open_clip_name(name: &str) -> String {
    let names = [
        ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
        ("text_model.encoder.layers.", "transformer.resblocks."),
        ("vision_model.embeddings.patch_embedding", "visual.conv1"),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("vision_model.embeddings.", "visual."),
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.embeddings.", ""),
        ("text_model.final_layer_norm", "ln_final"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ];
    names.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// What lies beside the weights of `smoke`: `clip` as transformers has it, else as open_clip.
pub(crate) fn settings(smoke: &str) -> Vec<(&'static str, Vec<u8>)> {
    let colours = json!({"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]});
    let side = PATCH * 4;
    if smoke == "clip" {
        let config = json!({
            "projection_dim": COMMON,
            "text_config": {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 1,
                "num_attention_heads": 1, "eos_token_id": 2},
            "vision_config": {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 1,
                "num_attention_heads": 1, "image_size": side, "patch_size": PATCH},
        });
        let colours = json!({"image_mean": colours["mean"], "image_std": colours["std"]});
        return vec![
            ("config.json", config.to_string().into_bytes()),
            ("preprocessor_config.json", colours.to_string().into_bytes()),
        ];
    }
    let config = json!({
        "model_cfg": {"embed_dim": COMMON, "quick_gelu": true,
            "vision_cfg": {"image_size": side, "layers": 1, "width": WIDTH, "head_width": WIDTH, "patch_size": PATCH},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 1, "layers": 1}},
        "preprocess_cfg": colours,
    });
    vec![("open_clip_config.json", config.to_string().into_bytes())]
}
